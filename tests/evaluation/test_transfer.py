from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from simcse_train.encoders.loading import load_encoder
from simcse_train.errors import InputError
from simcse_train.evaluation import transfer
from simcse_train.evaluation.transfer import FILES, as_json, evaluate_transfer, score_task, table

MAN = [
    f"the man {verb} in the {place}"
    for verb in ("sings", "runs", "plays")
    for place in ("park", "hill", "red park", "big hill")
]
CAT = [text.replace("the man", "a small cat") for text in MAN]


def senteval(folder: Path) -> Path:
    """Write small files in the form of each of the seven tasks; the class is whether a man or a cat does it."""
    for name in (name for names in FILES.values() for name in names):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
    for task in ("MR", "CR", "SUBJ", "MPQA"):
        for name, texts in zip(FILES[task], (MAN, CAT), strict=True):
            (folder / name).write_bytes("\n".join(texts).encode("latin-1") + b" caf\xe9\n")
    for name in FILES["SST2"]:
        (folder / name).write_text("".join(f"{m}\t0\n{c}\t1\n" for m, c in zip(MAN, CAT, strict=True)))
    for name in FILES["TREC"]:
        (folder / name).write_text("".join(f"HUM:ind {m}\nENTY:animal {c}\n" for m, c in zip(MAN, CAT, strict=True)))
    for name in FILES["MRPC"]:
        lines = [f"1\t1\t2\t{m}\t{m}\n0\t1\t2\t{m}\t{c}\n" for m, c in zip(MAN, CAT, strict=True)]
        (folder / name).write_text("Quality\t#1 ID\t#2 ID\t#1 String\t#2 String\n" + "".join(lines))
    return folder


def test_tasks_that_are_easy_are_learned_and_averaged(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(transfer, "STRENGTHS", [1.0])  # four tasks times ten times ten folds times each of them
    results = evaluate_transfer(load_encoder(tiny), senteval(tmp_path))
    assert [result.task for result in results] == [*FILES, "average"]
    assert all(result.accuracy is not None and result.accuracy > 90 for result in results)
    assert {result.task: result.examples for result in results}["MRPC"] == 48
    assert json.loads(as_json(results))["average"]["accuracy"] == pytest.approx(
        np.mean([result.accuracy for result in results[:-1]])
    )


def test_a_missing_task_is_named_and_never_averaged_away(tiny: Path, tmp_path: Path) -> None:
    senteval(tmp_path)
    for name in [name for task in FILES if task != "TREC" for name in FILES[task]]:
        (tmp_path / name).unlink()
    results = evaluate_transfer(load_encoder(tiny), tmp_path)
    assert {result.task for result in results if result.accuracy is not None} == {"TREC"}
    assert "without MR/rt-polarity.pos" in table(results)
    assert "No average" in table(results)
    for name in FILES["TREC"]:
        (tmp_path / name).unlink()
    with pytest.raises(InputError, match="none of the transfer tasks"):
        evaluate_transfer(load_encoder(tiny), tmp_path)


def test_a_line_in_another_form_is_refused_with_its_number(tiny: Path, tmp_path: Path) -> None:
    senteval(tmp_path)
    for task in ("MR", "CR", "SUBJ", "MPQA"):
        for name in FILES[task]:
            (tmp_path / name).unlink()
    (tmp_path / FILES["SST2"][1]).write_text("fine\t1\nno label\n")
    with pytest.raises(InputError, match="sentiment-dev, line 2"):
        evaluate_transfer(load_encoder(tiny), tmp_path)


def test_a_coin_is_not_learned() -> None:
    generator = np.random.default_rng(0)
    features = generator.normal(size=(200, 5)).astype(np.float32)
    classes = generator.choice(["a", "b"], size=200)
    assert 30 < score_task([(features[:60], classes[:60])]) < 70
    assert 30 < score_task([(features[:100], classes[:100]), (features[100:], classes[100:])]) < 70
