from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from simcse_train.config import TrainConfig, make_config, objective_setting
from simcse_train.config_file import config_yaml, read_settings
from simcse_train.errors import InputError
from simcse_train.training.changes import changed
from simcse_train.training.optimizer import peak_rate
from tests.conftest import CONFIGS


def test_defaults_are_those_of_the_paper_for_unsupervised_bert() -> None:
    config = make_config({"data": "x.txt"})
    assert (config.batch_size, peak_rate(config), config.epochs, config.max_length) == (64, 3e-5, None, 32)
    temperature = objective_setting(config, "temperature")
    assert (temperature, config.warmup_ratio, config.weight_decay, config.max_grad_norm) == (0.05, 0, 0, 1)


def test_sentences_and_tables_in_the_place_of_names_are_refused() -> None:
    for data in (np.array(["a man"]), pa.table({"text": ["a man"]}), iter(["a man"])):
        with pytest.raises(InputError, match="a list of names; sentences and tables are read from files"):
            make_config({"data": data})


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*.yaml")), ids=lambda p: p.name)
def test_every_config_of_the_repository_is_valid(path: Path) -> None:
    config = make_config({"data": "x.txt"} | read_settings(path))
    if path.stem != "quickstart":
        assert config.model == path.stem.removeprefix("sup-")
        assert (objective_setting(config, "temperature"), config.pooling) == (0.05, "cls")
        assert config.epochs == (3 if path.stem.startswith("sup-") else 1)
        assert config.max_length == (64 if "chinese" in path.stem else 32)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({}, "--data is missing"),
        ({"data": []}, "--data"),
        ({"temperature": 0}, "--temperature 0: .*greater than 0"),
        ({"temperature": float("nan")}, "--temperature nan"),
        ({"batch_size": 1}, "--batch-size 1: .*greater than or equal to 2"),
        ({"micro_batch_size": 0}, "--micro-batch-size 0: .*greater than or equal to 1"),
        ({"learning_rate": -1}, "--learning-rate -1"),
        ({"pooling": "max"}, "--pooling max: .*'auto', 'cls', 'mean' or 'last'"),
        ({"dropout": 1.0}, "--dropout 1.0: .*less than 1"),
        ({"epochs": "many"}, "--epochs many: .*integer"),
        ({"mask_similar": 1}, "--mask-similar 1: .*less than 1"),
        ({"start_weight": 0, "objective": "soft"}, "--start-weight 0: .*greater than 0"),
        ({"neighbours": 101, "objective": "soft"}, "--neighbours 101: .*less than or equal to 100"),
    ],
)
def test_a_setting_out_of_range_is_named_with_what_is_allowed(settings: dict[str, object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        make_config({"data": "x.txt"} | settings if settings else {})


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"beta": 1.0}, "--beta 1.0 is for --objective debiased, and the objective is auto. Leave it out, or choose"),
        ({"objective": "queue", "neighbours": 3}, "--neighbours 3 is for --objective relational or soft or neighbours"),
        ({"objective": "neighbours", "neighbours": 0}, "--neighbours 0: --objective neighbours needs at least 1"),
        (
            {"objective": "neighbours", "view": "repetition"},
            "--view repetition does not combine with --objective neigh",
        ),
        (
            {"objective": "relational", "start_weight": 1, "temperature": 0.05},
            "--temperature 0.05 is for NT-Xent, of which --objective relational takes nothing at --start-weight 1. ",
        ),
        ({"objective": "relational", "start_weight": 1.0, "mask_similar": 0.99}, "--mask-similar 0.99 is for NT-Xent"),
        (
            {"data": [], "pairs": "p.csv", "objective": "soft"},
            "--objective soft is for the text of --data, and there are",
        ),
        ({"data": [], "pairs": "p.csv", "view": "repetition"}, "--view repetition is for the text of --data"),
        ({"pairs": "p.csv", "patience": 3}, "--patience 3: what --pairs ask for .* Name them with --eval"),
        ({"pairs": ""}, "^--pairs '': an empty name; name a file or folder, or leave it out\\.$"),
        ({"output": ""}, "^--output '': an empty name; "),
    ],
)
def test_a_setting_that_the_others_make_meaningless_is_refused(settings: dict[str, object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        make_config({"data": "x.txt"} | settings)


@pytest.mark.parametrize("more", [{"start_weight": 0.9}, {"pairs": "p.csv"}, {"objective": "soft"}])
def test_a_setting_of_nt_xent_is_taken_where_it_has_an_effect(more: dict[str, object]) -> None:
    """With `soft` they have one at any weight, and with pairs on these."""
    given = {"data": "x.txt", "objective": "relational", "start_weight": 1, "temperature": 0.1, "mask_similar": 0.99}
    assert make_config(given | more).temperature == 0.1


def test_a_setting_of_an_objective_has_a_default_for_each_objective_that_has_it() -> None:
    soft, relational = (make_config({"data": "x", "objective": name}) for name in ("soft", "relational"))
    assert (objective_setting(soft, "neighbours"), objective_setting(relational, "neighbours")) == (0, 5)
    given = make_config({"data": "x", "objective": "relational", "neighbours": 0})
    assert objective_setting(given, "neighbours") == 0
    assert make_config(yaml.safe_load(config_yaml(given))).neighbours == 0


def test_pairs_alone_need_no_text() -> None:
    config = make_config({"pairs": "p.csv"})
    assert config.data == []
    assert make_config(yaml.safe_load(config_yaml(config))) == config


@pytest.mark.parametrize(("key", "near"), [("temprature", "temperature"), ("batch-size", "batch_size"), ("lr", None)])
def test_an_unknown_key_suggests_the_nearest(tmp_path: Path, key: str, near: str | None) -> None:
    (tmp_path / "c.yaml").write_text(f"{key}: 1\n")
    with pytest.raises(
        InputError,
        match=f"c.yaml.*no setting '{key}'. " + (f"Did you mean '{near}'" if near else "The settings are data"),
    ):
        read_settings(tmp_path / "c.yaml")


@pytest.mark.parametrize(
    "content",
    [
        "- a\n- b\n",
        "a: [1\n",
        "",
        "just text",
        "5: x\n",
        "~: x\n",
        "[a]: x\n",
        "seed: !!timestamp 2026-02-30\n",
        "seed: " + "[" * 5000,
        "? {a: b}\n: c\n",
    ],
)
def test_a_file_that_holds_no_settings_is_refused(tmp_path: Path, content: str) -> None:
    (tmp_path / "c.yaml").write_text(content)
    with pytest.raises(InputError, match=r"--config .*c\.yaml"):
        read_settings(tmp_path / "c.yaml")
    with pytest.raises(InputError, match="No such file"):
        read_settings(tmp_path / "nowhere.yaml")


@pytest.mark.parametrize(
    ("content", "line"), [("seed: 1\nepochs: 2\nseed: 3\n", 3), ("{seed: 1, 'seed': 1}", 1), ("data: a\ndata: b", 2)]
)
def test_a_setting_that_stands_twice_is_refused(tmp_path: Path, content: str, line: int) -> None:
    (tmp_path / "c.yaml").write_text(content)
    with pytest.raises(InputError, match=rf"c\.yaml, line {line}: '(seed|data)' stands in line 1, too\. Keep one\."):
        read_settings(tmp_path / "c.yaml")


@pytest.mark.parametrize(
    ("line", "name", "value"),
    [
        ("kernels: off", "kernels", "off"),
        ("projection: on", "projection", "on"),
        ("learning_rate: 3e-5", "learning_rate", 3e-5),
        ("output: 2026-11-30", "output", "2026-11-30"),
        ("data: a.txt", "data", ["a.txt"]),
        ("data: [a.txt, 2026]", "data", ["a.txt", "2026"]),
        ("text_column: 1", "text_column", "1"),
        ("max_steps: 1_000", "max_steps", 1000),
        ("patience:", "patience", None),
        ("eval: ~", "eval", None),
    ],
)
def test_values_of_a_file_are_read_as_the_command_line_reads_them(
    tmp_path: Path, line: str, name: str, value: object
) -> None:
    (tmp_path / "c.yaml").write_text(f"{line}\n")
    assert read_settings(tmp_path / "c.yaml") == {name: value}


def test_a_file_may_hold_settings_that_only_fit_those_of_the_command_line(tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text("neighbours: 3\n")
    settings = read_settings(tmp_path / "c.yaml")
    assert make_config({"data": "x", **settings, "objective": "relational"}).neighbours == 3
    with pytest.raises(InputError, match="--neighbours 3 is for --objective"):
        make_config({"data": "x", **settings})


def test_paths_are_taken_as_python_programs_have_them() -> None:
    names = {"data": "a.txt", "model": "m", "pairs": "p.csv", "eval": "e.tsv", "output": "runs/x"}
    given: dict[str, object] = {name: Path(value) for name, value in names.items()}
    assert make_config(given) == make_config(names)
    assert make_config({**given, "data": [Path("a.txt"), "b.txt"]}).data == ["a.txt", "b.txt"]
    assert make_config({**given, "data": (Path("a.txt"),)}).data == ["a.txt"]
    changes = {"data": Path("/new/a.txt"), "pairs": Path("/new/p.csv"), "eval": Path("/new/e.tsv")}
    moved = changed(make_config(names), changes)
    assert (moved.data, moved.pairs, moved.eval) == (["/new/a.txt"], "/new/p.csv", "/new/e.tsv")


@settings(max_examples=100, deadline=None)
@given(
    st.builds(
        TrainConfig,
        data=st.lists(st.text(min_size=1, max_size=20), min_size=1, max_size=3),
        text_column=st.none() | st.text(max_size=20),
        learning_rate=st.floats(1e-12, 1),
        temperature=st.floats(1e-3, 10),
        max_steps=st.none() | st.integers(1, 10**9),
        seed=st.integers(0, 2**32 - 1),
        output=st.none(),
    )
)
def test_yaml_keeps_every_setting(config: TrainConfig) -> None:
    assert make_config(yaml.safe_load(config_yaml(config))) == config


def test_python_is_told_the_nearest_setting_too() -> None:
    with pytest.raises(ValidationError, match="There is no setting 'batch_sise'. Did you mean 'batch_size'"):
        TrainConfig(data=["x"], batch_sise=5)  # type: ignore[call-arg]
