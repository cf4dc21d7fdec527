"""Each message names the option or argument that the user gave, and each failure its status."""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from simcse_train.config import make_config
from simcse_train.errors import InputError
from simcse_train.runs.folder import checkpoints
from simcse_train.training.start import train
from tests.cli.test_commands import refused, run
from tests.training.test_loop import settings


@pytest.fixture(scope="module")
def finished(text: Path, tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "run"
    config = {"data": str(text), "model": str(tiny), "output": str(folder), "batch_size": 8, "max_length": 16}
    train(make_config({**config, "max_steps": 4, "save_every": 2}))
    return folder


@pytest.fixture
def damaged(finished: Path, tmp_path: Path) -> Path:
    """A run without an export whose newest checkpoint is damaged."""
    copy = Path(shutil.copytree(finished, tmp_path / "damaged"))
    shutil.rmtree(copy / "encoder")
    victim = checkpoints(copy)[-1] / "encoder" / "model.safetensors"
    victim.write_bytes(victim.read_bytes()[:-1])
    return copy


def test_every_command_warns_when_it_skips_a_damaged_checkpoint(
    damaged: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    older, newest = checkpoints(damaged)
    (tmp_path / "in.txt").write_text("a man\nthe cat\n")
    (tmp_path / "pairs.tsv").write_text("a man\tthe man\t5\na cat\tguitar\t0\na dog\tthe dog runs\t3\n")
    for arguments in (
        ("export", damaged, tmp_path / "out"),
        ("evaluate", damaged, "--data", tmp_path / "pairs.tsv"),
        ("encode", damaged, tmp_path / "in.txt", tmp_path / "rows.npy"),
    ):
        capsys.readouterr()
        assert run(*arguments) == 0
        warned = capsys.readouterr().err
        assert f"Skipped {newest}: encoder/model.safetensors is damaged. Using {older}." in warned, arguments


def test_an_input_that_cannot_be_read_is_called_input(
    tiny: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "empty.txt").touch()
    (tmp_path / "folder").mkdir()
    with socket.socket(socket.AF_UNIX) as listener:
        monkeypatch.chdir(tmp_path)  # the path of a socket must be short
        listener.bind("socket")  # it is there and can't be opened
    for name in ("nowhere.txt", "empty.txt", "folder", "socket"):
        said = refused(capsys, "encode", tiny, tmp_path / name, tmp_path / "rows.npy")
        assert f"INPUT {tmp_path / name}" in said
        assert "--data" not in said


@pytest.mark.parametrize(
    "content", [None, "folder", "", "a\tb\t1\n", "a\tb\t1\na\tb\tgood\n", "a\tb\t1\na\tb\n", b"\xff\xff\n\0"]
)
def test_labelled_pairs_that_cannot_be_read_are_called_eval(
    content: str | bytes | None, text: Path, tiny: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pairs = tmp_path / "pairs.tsv"
    if content == "folder":
        pairs.mkdir()
    elif content is not None:
        pairs.write_bytes(content if isinstance(content, bytes) else content.encode())
    said = refused(capsys, "--data", text, "--model", tiny, "--output", tmp_path / "run", "--eval", pairs)
    assert f"--eval {pairs}" in said
    assert "--data" not in said
    assert not (tmp_path / "run").exists()


def test_a_run_that_fails_ends_with_status_1(
    text: Path, tiny: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rate = ("--learning-rate", 1e30)  # the first step moves every weight by that much
    assert run("--data", text, "--model", tiny, "--output", tmp_path / "run", "--precision", "fp32", *rate) == 1
    assert "Step 2: the loss is nan" in capsys.readouterr().err


def test_the_library_leaves_the_messages_and_progress_bars_of_transformers_alone(tiny: Path) -> None:
    code = f"""
from transformers.utils import logging
def settings():
    return logging.get_verbosity(), logging.is_progress_bar_enabled()
logging.set_verbosity_info()
before = settings()
import simcse_train
from simcse_train import load_encoder, train, TrainConfig
load_encoder({str(tiny)!r}).encode(["a man"])
print(before == settings(), before)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("True (20, True)")


def test_names_and_text_in_messages_do_not_act_on_the_terminal(
    tiny: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    said = refused(capsys, "--data", tmp_path / "no\x1b[2Jwhere.txt", "--model", tiny, "--output", tmp_path / "out")
    assert "no␛[2Jwhere.txt: there is no such file" in said
    lines = [f"{word} \x1b[31mred\x07 man number {i}" for i in range(20) for word in ("a", "the")]
    data = tmp_path / "a\x1b[31m.txt"
    data.write_text("\n".join(lines) + "\n")
    assert run("inspect", "--data", data, "--model", tiny) == 0
    assert run("search", tiny, "a man", "--data", data) == 0
    settings = ("--batch-size", 8, "--max-steps", 2, "--output", tmp_path / "run\x1b[0m")
    assert run("--data", data, "--model", tiny, *settings) == 0
    shown = "".join(capsys.readouterr())
    assert "␛[31mred␇ man" in shown
    assert "run␛[0m" in shown
    assert not {character for character in shown if ord(character) < 0x20} - set("\t\n\r")


def test_no_command_replaces_a_file_that_it_uses(
    tiny: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = [f"the {color} {animal}" for color in ("red", "blue", "big", "small") for animal in ("cat", "dog", "hill")]
    table = tmp_path / "t.jsonl"
    table.write_text("".join(json.dumps({"text": line, "label": line[-3:]}) + "\n" for line in lines))
    pq.write_table(pa.table({"text": lines, "label": range(len(lines))}), tmp_path / "t.parquet")
    (tmp_path / "link.parquet").symlink_to("t.parquet")
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    asked = ("compare", "starter", tiny, "--data", table, "--judge", table, "--label-column", "label")
    answers = ("--answers", tmp_path / "a.jsonl")
    for target, read, arguments in [
        ("OUTPUT {}/t.parquet", "{}/t.parquet", ("encode", tiny, tmp_path / "t.parquet", tmp_path / "t.parquet")),
        ("OUTPUT {}/link.parquet", "{}/t.parquet", ("encode", tiny, tmp_path / "t.parquet", tmp_path / "link.parquet")),
        ("--write-eval {}/t.jsonl", "{}/t.jsonl", (*asked, *answers, "--write-eval", table)),
        ("--write-pairs {}/a.jsonl", "{}/a.jsonl", (*asked, *answers, "--write-pairs", tmp_path / "a.jsonl")),
        (
            "--write-pairs {}/p.jsonl",
            "{}/p.jsonl",
            (*asked, "--write-eval", tmp_path / "p.jsonl", "--write-pairs", tmp_path / "p.jsonl"),
        ),
    ]:
        said = refused(capsys, *arguments)
        expected = f"{target.format(tmp_path)} would replace {read.format(tmp_path)}, which this command uses too"
        assert expected in said, arguments
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before


@pytest.mark.parametrize(
    "arguments",
    [
        ("--data", ""),
        ("--data", "x.txt", "--pairs", ""),
        ("search", "starter", ""),
        ("export", "run", ""),
        ("report", ""),
    ],
)
def test_an_empty_argument_is_named_by_what_stands_before_it(arguments: tuple[str, ...]) -> None:
    command = [sys.executable, "-m", "simcse_train", *arguments]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr.startswith(f"{arguments[-2] if len(arguments) > 1 else ''} is followed by an empty argument")


@pytest.mark.parametrize(("option", "value"), [("--batch-size", "1"), ("--max-length", "0")])
def test_inspect_has_the_limits_of_a_training(
    capsys: pytest.CaptureFixture[str], text: Path, option: str, value: str
) -> None:
    assert f"{option} {value}" in refused(capsys, "inspect", "--data", text, option, value)


def test_words_that_the_tokenizer_does_not_know_are_said(
    caplog: pytest.LogCaptureFixture, tiny: Path, tmp_path: Path
) -> None:
    known = [f"{word} {other}" for word in ("a man", "the cat", "red dog") for other in ("runs", "plays", "sings")]
    lines = [f"{line} \u4e00{chr(0x4E00 + number)} \u96e8 \u98ce" for number, line in enumerate(known * 4)]
    (tmp_path / "x.txt").write_text("\n".join(lines), encoding="utf-8")
    with caplog.at_level("INFO"):
        train(settings(tmp_path / "x.txt", tiny, tmp_path / "run", max_steps=1))
    assert "of the tokens are unknown to the tokenizer" in caplog.text
    (tmp_path / "y.txt").write_text("\n".join(f"\u96e8 \u98ce {chr(0x4E00 + n)}" for n in range(30)), encoding="utf-8")
    with pytest.raises(InputError, match="All sentences become the same tokens"):
        train(settings(tmp_path / "y.txt", tiny, tmp_path / "other", max_steps=1))
    assert not (tmp_path / "other").exists()
