from __future__ import annotations

import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml

from simcse_train.config import make_config, option
from simcse_train.encoders.loading import load_encoder
from simcse_train.errors import InputError
from simcse_train.evaluation import diagnosis
from simcse_train.evaluation.diagnosis import SAME_TOPIC, Diagnosis, diagnose
from simcse_train.runs.folder import checkpoints
from simcse_train.search.embeddings import embed_rows
from simcse_train.training.changes import changed
from simcse_train.training.plan import check_disk, choose_objective, make_batches, resolve, total_steps
from simcse_train.training.start import resume, train
from simcse_train.training.texts import open_texts
from tests.training.test_loop import settings


def test_sentences_may_use_every_position_of_the_encoder_and_no_more(text: Path, tiny: Path, tmp_path: Path) -> None:
    train(settings(text, tiny, tmp_path / "run", max_length=64, max_steps=1))
    with pytest.raises(InputError, match="--max-length 65 is beyond the 64 positions"):
        train(settings(text, tiny, tmp_path / "longer", max_length=65, max_steps=1))


@pytest.mark.parametrize("name", ["max_steps", "epochs"])
def test_a_resumed_run_may_be_lengthened_and_not_shortened(name: str) -> None:
    config = make_config({"data": "x.txt", name: 10})
    assert getattr(changed(config, {name: 11}), name) == 11
    assert getattr(changed(config, {name: 10}), name) == 10
    with pytest.raises(InputError, match=f"{option(name)} can only be raised when a run is resumed; it was 10"):
        changed(config, {name: 9})


def test_a_length_that_would_not_count_is_refused(text: Path, tiny: Path, tmp_path: Path) -> None:
    config = make_config({"data": "x.txt", "max_steps": 10, "epochs": 1})
    assert changed(config, {"epochs": 1}).max_steps == 10
    assert changed(config, {"epochs": 2, "max_steps": 20}).max_steps == 20
    with pytest.raises(InputError, match="--epochs 2 has no effect, since --max-steps 10 decides"):
        changed(config, {"epochs": 2})
    with pytest.raises(InputError, match="--epochs 2 has no effect, since --max-steps 10 decides"):
        changed(config, {"epochs": 2, "max_steps": 10})  # as the config.yaml of the run says
    train(settings(text, tiny, tmp_path / "run", epochs=1))  # 14 steps
    for checkpoint in checkpoints(tmp_path / "run"):
        with pytest.raises(InputError, match="begun with 14 steps.* can be raised, and not be lowered to 5"):
            resume(checkpoint, {"max_steps": 5})


def test_what_auto_found_may_be_given_again_with_a_setting_that_only_the_found_one_has() -> None:
    config = make_config({"data": "x.txt", "objective": "relational", "start_weight": 0.1})
    assert changed(config, {"objective": "auto", "start_weight": 0.1}) == config


@pytest.mark.parametrize(
    ("model", "changes", "rate", "is_said"),
    [
        ("starter", {"max_steps": 1000}, 7.5e-6, True),
        ("starter", {"max_steps": 250}, 3e-5, False),
        ("starter", {"max_steps": 1000, "learning_rate": 1e-4}, 1e-4, False),
        ("starter", {"epochs": 50}, 1.1e-5, True),  # 112 of 120 sentences, 8 in a batch, 14 steps each
        ("tiny", {"max_steps": 1000}, 3e-5, False),
    ],
)
def test_a_long_run_of_a_tuned_encoder_takes_smaller_steps(
    text: Path, tiny: Path, model: str, changes: dict[str, Any], rate: float, is_said: bool
) -> None:
    config = make_config({"data": str(text), "model": model, "batch_size": 8, **changes})
    encoder = load_encoder(tiny if model == "tiny" else model)
    batches = make_batches(config, encoder, open_texts(config, encoder))
    chosen, line = choose_objective(
        config, diagnose(embed_rows(encoder, batches.measured()), for_sentences=False), batches
    )
    assert chosen.learning_rate == rate
    assert (f"--learning-rate {rate}, since" in line) is is_said
    assert (f"in {total_steps(config, batches):,} steps at 3e-05" in line) is is_said


def test_a_temperature_that_is_given_stays_where_another_would_be_chosen(text: Path, tiny: Path) -> None:
    encoder, crowded = load_encoder(tiny), Diagnosis(-0.8, 0.8, 0.9, 0.5, for_sentences=True)
    for given, used in ((None, 0.01), (0.07, 0.07), (0.05, 0.05)):  # 0.05 is what is usual elsewhere
        changes = {} if given is None else {"temperature": given}
        config = make_config({"data": str(text), "model": str(tiny), **changes})
        batches = make_batches(config, encoder, open_texts(config, encoder))
        chosen, line = choose_objective(config, crowded, batches)
        assert (chosen.objective, chosen.temperature, chosen.start_temperature) == ("relational", used, 0.02)
        assert ("--temperature 0.01" in line) is (not given)
        make_config(chosen.model_dump())


@pytest.mark.parametrize(("changes", "rate"), [({}, 3e-5), ({"learning_rate": 1e-4}, 1e-4)])
def test_the_config_of_a_run_has_its_learning_rate(
    text: Path, tmp_path: Path, changes: dict[str, float], rate: float
) -> None:
    for objective in ("auto", "ntxent"):
        given = {
            "data": str(text),
            "max_steps": 1,
            "objective": objective,
            "output": str(tmp_path / objective),
            **changes,
        }
        assert yaml.safe_load((train(make_config(given)).folder / "config.yaml").read_text())["learning_rate"] == rate


@pytest.mark.parametrize(
    ("model", "changes", "steps", "is_warned"),
    [
        ("starter", {"learning_rate": 1e-3}, 3, True),
        ("starter", {"learning_rate": 1e-3}, 2, False),  # as many as it began with
        ("starter", {}, 3, False),
        ("starter", {"learning_rate": 1e-3, "objective": "relational"}, 3, False),
        ("tiny", {"learning_rate": 1e-3}, 3, False),  # a plain encoder has nothing to unlearn
    ],
)
def test_a_run_made_longer_says_what_its_rate_may_cost(
    text: Path,
    tiny: Path,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
    model: str,
    changes: dict[str, Any],
    steps: int,
    is_warned: bool,
) -> None:
    monkeypatch.setattr(diagnosis, "GENERAL", 1.0)  # as if this text were a general one
    path = str(tiny) if model == "tiny" else model
    given = {"data": str(text), "model": path, "batch_size": 8, "max_steps": 2, "output": str(tmp_path / "run")}
    run = train(make_config(given | changes)).folder
    caplog.clear()
    resume(run, {"max_steps": steps})
    assert ("In 3 steps at this rate" in caplog.text) is is_warned
    assert ("--max-steps 3 and --learning-rate 3e-05" in caplog.text) is is_warned


@pytest.mark.parametrize("name", ["eval", "pairs", "data"])
def test_what_is_trained_on_and_scored_may_be_moved_and_not_added(name: str) -> None:
    without = {"data": "/x.txt", "pairs": "/p.csv", "eval": "/e.tsv"}
    config = make_config({key: value for key, value in without.items() if key != name})
    with pytest.raises(InputError, match=rf"{option(name)} .*new.* differs from the run's own (None|\[\]), and would"):
        changed(config, {name: "/new.tsv"})
    moved = getattr(changed(make_config(without), {name: "/new.tsv"}), name)
    assert moved == (["/new.tsv"] if name == "data" else "/new.tsv")


def test_paths_that_are_given_to_continue_a_run_are_kept_as_absolute_ones(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    config = make_config({"data": "/x.txt", "pairs": "/p.csv", "eval": "/e.tsv"})
    found = changed(config, {"data": "new/x.txt", "pairs": "p.csv", "eval": "new/e.tsv"})
    assert (found.data, found.pairs, found.eval) == (
        [str(tmp_path / "new" / "x.txt")],
        str(tmp_path / "p.csv"),
        str(tmp_path / "new" / "e.tsv"),
    )


def test_saving_by_the_clock_can_be_switched_off_and_trackers_changed_when_a_run_is_resumed() -> None:
    config = make_config({"data": "/x.txt", "eval": "/e.tsv", "save_minutes": 5, "patience": 3})
    assert changed(config, {"save_minutes": None}).save_minutes is None
    assert changed(config, {"save_minutes": 2}).save_minutes == 2
    assert changed(config, {}).save_minutes == 5
    assert changed(config, {"eval": None, "patience": None}) == config
    assert changed(config, {"track": ["tensorboard", "mlflow"]}).track == ["tensorboard", "mlflow"]


def test_a_folder_that_is_called_as_the_bundled_encoder_does_not_take_its_place(
    text: Path, tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copytree(tiny, tmp_path / "starter")
    shutil.copytree(tiny, tmp_path / "own")
    encoder = load_encoder(tiny)
    for given, found in (("starter", "starter"), ("own", str(tmp_path / "own")), ("./starter", None)):
        assert resolve(settings(text, given, tmp_path / "run"), encoder, tmp_path / "run").model == (
            found or str(tmp_path / "starter")
        )


@pytest.mark.parametrize(("longest", "is_said"), [(16, False), (17, True)])
def test_sentences_longer_than_the_encoders_own_files_allow_are_said_to_be_cut_in_the_export(
    text: Path, tiny: Path, tmp_path: Path, longest: int, is_said: bool
) -> None:
    encoder = load_encoder(tiny)
    encoder.max_length = 16
    resolve(settings(text, tiny, tmp_path / "run", max_length=longest), encoder, tmp_path / "run")
    note = "This encoder's own files cut sentences at 16 tokens, and so will the export. Training sees 17."
    assert (note in encoder.notes) is is_said


@pytest.mark.parametrize(("given", "expected"), [({"mask_similar": 0.5}, 0.5), ({}, SAME_TOPIC)])
def test_a_quantile_that_was_given_for_pairs_alone_is_not_replaced_by_the_recommended_one(
    tiny: Path, tmp_path: Path, given: dict[str, float], expected: float
) -> None:
    (tmp_path / "p.csv").write_text("anchor,positive\na man,the man\na dog,the dog\na cat,the cat\n")
    config = make_config({"pairs": str(tmp_path / "p.csv"), "batch_size": 2, **given})
    encoder = load_encoder(tiny)
    tuned_on_narrow_text = Diagnosis(uniformity=-3, mean_cosine=0.2, hardest_negative=0.6, cluster_agreement=0.1)
    chosen, line = choose_objective(
        config, tuned_on_narrow_text, make_batches(config, encoder, open_texts(config, encoder))
    )
    assert chosen.mask_similar == expected
    assert f"--mask-similar {expected}" in line


@pytest.mark.parametrize(("objective", "copies"), [("ntxent", 3), ("queue", 4)])  # with the momentum encoder
def test_space_is_needed_for_the_newest_checkpoints_the_best_one_and_one_being_saved(
    text: Path, tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, objective: str, copies: int
) -> None:
    encoder = load_encoder(tiny)
    weights = sum(tensor.nbytes for tensor in encoder.state_dict().values())
    needed = copies * weights * (2 + 1 + 1) + weights  # weights and two moments of each; and the exported encoder
    config = settings(text, tiny, tmp_path, keep=2, objective=objective)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=needed))
    check_disk(encoder, config, tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=needed - 1))
    with pytest.raises(InputError, match="MiB free for it, and 3 checkpoints and the encoder need"):
        check_disk(encoder, config, tmp_path)
