from __future__ import annotations

import logging
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from simcse_train import TrainConfig, load_encoder, resume, train
from simcse_train.data.batches import held_out_sentences
from simcse_train.data.corpus import open_corpus
from simcse_train.errors import InputError, Stopped
from simcse_train.evaluation.geometry import alignment, look
from simcse_train.export.folder import load_saved_encoder
from simcse_train.report import page
from simcse_train.report.page import names_of, report_at_end, write_report
from simcse_train.report.summary import summarise
from simcse_train.runs.folder import METRICS
from simcse_train.runs.metrics import read_metrics
from tests.browser import HOSTILE, complaints, contrast, requests, themes_of, visit
from tests.conftest import EXAMPLES
from tests.training.test_loop import interrupted_at, settings


@pytest.fixture(scope="module")
def hostile_run(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run whose held-out sentences, twenty of them, are mostly hostile texts."""
    folder = tmp_path_factory.mktemp("hostile")
    plain = (EXAMPLES / "sentences.txt").read_text(encoding="utf-8").splitlines()[:200]
    for number, text in zip(held_out_sentences(len(plain)), HOSTILE, strict=False):
        plain[number] = text
    data = folder / "cor'pus <b>.txt"
    data.write_text("\n".join(plain) + "\n", encoding="utf-8")
    config = TrainConfig(
        data=[str(data)],
        model=str(tiny),
        output=str(folder / "<i>run"),
        batch_size=16,
        max_steps=6,
        eval_every=2,
        log_every=2,
    )
    run = train(config).folder
    report_at_end(run)
    return run


def test_a_run_whose_best_step_is_not_its_last_is_described_at_the_best(tiny: Path, text: Path, tmp_path: Path) -> None:
    lines = text.read_text(encoding="utf-8").splitlines()[:20]
    rows = load_encoder(tiny).encode(lines)
    pairs = [f"{lines[i]}\t{lines[i + 10]}\t{float(rows[i] @ rows[i + 10])!r}\n" for i in range(10)]
    (tmp_path / "pairs.tsv").write_text("".join(pairs), encoding="utf-8")  # a perfect score, so that step 0 is the best
    run = train(settings(text, tiny, tmp_path / "run", max_steps=3, eval=str(tmp_path / "pairs.tsv"))).folder
    measured = {line["step"]: line for line in read_metrics(run) if "uniformity" in line}
    assert sorted(measured) == [0, 3]
    summary = summarise(run)
    assert summary.finished
    assert summary.step == 0
    assert summary.steps == 3
    assert summary.after["uniformity"] == measured[0]["uniformity"] != measured[3]["uniformity"]


def test_what_a_run_has_seen_is_what_its_folder_shows(tiny: Path, tmp_path: Path) -> None:
    config = TrainConfig(
        data=[str(EXAMPLES / "sentences.txt")],
        model=str(tiny),
        output=str(tmp_path / "run"),
        batch_size=16,
        max_steps=4,
        eval_every=2,
        dropout=0.3,  # not the model's own: the views before training have it too
    )
    run = train(config)
    assert run.seen is not None
    assert run.seen.spaces is not None
    known, read = summarise(run.folder, seen=run.seen), summarise(run.folder)
    assert known.cosines is not None
    assert read.cosines is not None
    for one, other in zip(known.cosines, read.cosines, strict=True):
        for kind in ("views", "nearest", "random"):
            np.testing.assert_allclose(getattr(one, kind), getattr(other, kind), atol=1e-6)
    assert known.counts == read.counts
    assert known.held_out == read.held_out > 100
    assert [[n.text for n in e.after] for e in known.examples] == [[n.text for n in e.after] for e in read.examples]
    assert [e.changes for e in known.examples] == [e.changes for e in read.examples]
    assert known.after == read.after
    before, after = run.seen.spaces
    assert known.after["alignment"] == pytest.approx(alignment(*after.views), abs=1e-6)
    assert known.before["alignment"] == pytest.approx(alignment(*before.views), abs=1e-6)
    assert known.step == 4
    assert not torch.equal(after.embeddings, before.embeddings)


def test_the_page_opens_in_a_browser_without_errors_scripts_or_requests(browser: Any, hostile_run: Path) -> None:
    path = hostile_run / "report.html"
    visit(browser, path)
    assert complaints(browser) == []
    assert requests(browser) == [path.resolve().as_uri()]
    assert browser.execute_script("return window.ran") is None
    assert browser.execute_script("return document.scripts.length") == 0
    assert browser.execute_script("return document.images.length") == 0
    body = browser.find_element("tag name", "body")
    assert body.is_displayed()
    text = body.get_attribute("textContent")
    for hostile in HOSTILE[:6]:
        assert hostile in text
    assert f"({len(HOSTILE[7]):,} characters)" in text
    assert "␁␂␛[31m␡" in text
    assert summarise(hostile_run).verdict in text
    assert browser.execute_script("return document.querySelectorAll('svg').length") >= 8
    assert browser.execute_script("return document.querySelectorAll('details').length") == 20


def test_a_click_shows_the_neighbours_of_a_sentence(browser: Any, hostile_run: Path) -> None:
    visit(browser, hostile_run / "report.html")
    details = browser.find_elements("tag name", "details")[5]
    neighbour = details.find_element("tag name", "li")
    assert not neighbour.is_displayed()
    details.find_element("tag name", "summary").click()
    assert neighbour.is_displayed()
    assert len(details.find_elements("tag name", "li")) == 10


@pytest.mark.parametrize("width", [360, 1280])
def test_nothing_is_wider_than_the_screen_and_both_themes_have_contrast(
    browser: Any, hostile_run: Path, width: int
) -> None:
    backgrounds = themes_of(browser, hostile_run / "report.html", width)
    assert len(backgrounds) == 2
    paper = browser.execute_script("return getComputedStyle(document.body).backgroundColor")
    label = browser.execute_script("return getComputedStyle(document.querySelector('svg text')).fill")
    assert contrast(paper, label) > 4.5  # the plots take the theme too


def test_runs_side_by_side_show_what_differs(browser: Any, hostile_run: Path, tmp_path: Path) -> None:
    other = tmp_path / "other & 2"
    shutil.copytree(hostile_run, other)
    config = (other / "config.yaml").read_text().replace("learning_rate: 3.0e-05", "learning_rate: 1.0e-04")
    (other / "config.yaml").write_text(config)
    path = write_report([hostile_run, other])
    assert path.name == "comparison.html"
    visit(browser, path)
    text = browser.find_element("tag name", "body").text
    assert "other & 2" in text
    assert "<i>run" in text
    assert "3e-05" in text
    assert "0.0001" in text
    assert "temperature" not in text  # the same in both
    assert browser.get_log("browser") == []


def test_runs_of_one_name_are_told_apart_by_the_folders_above(hostile_run: Path, tmp_path: Path) -> None:
    runs = [Path(shutil.copytree(hostile_run, tmp_path / above / "run")) for above in ("first", "second")]
    shown = write_report(runs).read_text(encoding="utf-8")
    for name in ("first/run", "second/run"):
        assert shown.count(f"<bdi>{name}</bdi>") == 2  # above the measures and above the settings
    assert names_of([Path("a/run"), Path("a/run")]) == ["a/run", "a/run"]
    assert names_of([Path("a/x"), Path("b/y")]) == ["x", "y"]


def test_neighbours_that_changed_are_marked_and_the_rest_is_not(hostile_run: Path) -> None:
    summary = summarise(hostile_run)
    assert len(summary.examples) == 20
    assert summary.held_out == 20
    for example in summary.examples:
        before = {neighbour.text: neighbour.changed for neighbour in example.before}
        after = {neighbour.text: neighbour.changed for neighbour in example.after}
        assert len(before) == len(after) == 5
        assert example.text not in before
        assert {text for text, changed in before.items() if changed} == set(before) - set(after)
        assert {text for text, changed in after.items() if changed} == set(after) - set(before)
        assert [n.cosine for n in example.after] == sorted((n.cosine for n in example.after), reverse=True)
    assert summary.cosines is not None
    before_cosines, after_cosines = summary.cosines
    assert before_cosines.views.mean() != after_cosines.views.mean()
    assert before_cosines.nearest.mean() > before_cosines.random.mean()


def test_a_measure_of_the_start_alone_has_no_value_after_training(hostile_run: Path) -> None:
    page = write_report([hostile_run]).read_text(encoding="utf-8")
    cells = dict(re.findall(r"<tr><td>([a-z ]+)</td>\s*<td>([^<]*)</td>", page))
    assert re.fullmatch(r"-?\d\.\d{4}", cells["hardness"])
    assert re.fullmatch(r"-?\d\.\d{4} &rarr; -?\d\.\d{4}", cells["uniformity"])


def test_a_run_without_checkpoints_or_text_still_has_a_page(hostile_run: Path, tmp_path: Path) -> None:
    begun = tmp_path / "begun"
    begun.mkdir()
    shutil.copy(hostile_run / "config.yaml", begun)
    assert "Not finished" in write_report([begun]).read_text(encoding="utf-8")
    lost = tmp_path / "lost"
    shutil.copytree(hostile_run, lost)
    text = (lost / "config.yaml").read_text()
    (lost / "config.yaml").write_text(
        text[: text.index("model:")] + "model: /nowhere/model\n" + text.split("\n", 99)[-1]
    )
    written = write_report([lost]).read_text(encoding="utf-8")
    assert "Not shown" in written
    assert "there is no such folder" in written
    (lost / METRICS).write_text('{"step": 0, "alignment": 0.1, "uniformity": NaN}\n{"step": 2, "loss"')
    assert "was not measured before" in write_report([lost]).read_text(encoding="utf-8")
    with pytest.raises(InputError, match="is not a run"):
        write_report([tmp_path])


def test_a_page_that_fails_or_cannot_be_drawn_is_one_line_and_no_failure(
    hostile_run: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    caplog.set_level(logging.INFO, "simcse_train")
    monkeypatch.setattr(page, "render", lambda _: 1 / 0)
    report_at_end(hostile_run)
    assert "could not be written (ZeroDivisionError" in caplog.text
    caplog.clear()
    monkeypatch.setattr(page, "find_spec", lambda name: None)
    report_at_end(hostile_run)
    assert caplog.messages == [f"For a report page: {page.INSTALL}, then simcse-train report '{hostile_run}'"]
    with pytest.raises(InputError, match="needs jinja2 and matplotlib"):
        write_report([hostile_run])


def test_a_run_made_longer_and_stopped_is_not_finished(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    data = str(EXAMPLES / "sentences.txt")
    config = TrainConfig(data=[data], model=str(tiny), output=str(tmp_path / "run"), batch_size=16, max_steps=2)
    run = train(config).folder
    assert summarise(run, with_sentences=False).finished
    interrupted_at(monkeypatch, 2)
    with pytest.raises(Stopped):
        resume(run, {"max_steps": 6})
    found = summarise(run)
    assert (found.finished, found.step, found.steps) == (False, 4, 6)
    newest = load_encoder(run / "checkpoints" / "step-00000004")
    corpus = open_corpus([data], None, newest.tokenizer, 32)
    space = look(newest, corpus.tokens(held_out_sentences(len(corpus)))).embeddings
    cosines = (space @ space.T).fill_diagonal_(-1).max(dim=1).values
    assert found.cosines is not None
    np.testing.assert_allclose(found.cosines[1].nearest, cosines, atol=1e-5)
    assert "export of before is used" not in caplog.text
    load_saved_encoder(str(run))
    assert "is at step 4 of 6: its export of before is used" in caplog.text


def test_a_finished_run_whose_checkpoints_were_removed_is_described_by_its_export(
    hostile_run: Path, tmp_path: Path
) -> None:
    run = shutil.copytree(hostile_run, tmp_path / "run")
    whole = summarise(run)
    shutil.rmtree(run / "checkpoints")
    found = summarise(run)
    assert (found.finished, found.step, found.steps) == (True, 6, 6)
    assert (found.after, found.verdict) == (whole.after, whole.verdict)
    assert whole.cosines is not None
    assert found.cosines is not None
    np.testing.assert_allclose(found.cosines[1].nearest, whole.cosines[1].nearest, atol=1e-6)
