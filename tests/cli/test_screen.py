"""Streams that are full, closed or read by nobody: a run goes on, and a command says what is wrong."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from simcse_train.runs.metrics import read_metrics

SHELL = 'exec "$@" '


def through_shell(redirection: str, *arguments: object, given: bytes | None = None) -> tuple[int, str]:
    """Run the program with a redirection of the shell; return its status and what was said on the streams left."""
    command = ["sh", "-c", SHELL + redirection, "sh", sys.executable, "-m", "simcse_train", *map(str, arguments)]
    done = subprocess.run(command, input=given or b"", capture_output=True)
    return done.returncode, (done.stdout + done.stderr).decode()


@pytest.fixture
def training(text: Path, tiny: Path, tmp_path: Path) -> list[object]:
    more = ["--batch-size", 8, "--max-length", 16, "--max-steps", 30, "--log-every", 1]
    return ["--data", text, "--model", tiny, "--output", tmp_path / "run", *more]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="a device of Linux")
@pytest.mark.parametrize("redirection", ["2>/dev/full", "2>&-"])
def test_a_run_whose_screen_is_full_or_closed_ends_as_any_other(
    training: list[object], tmp_path: Path, redirection: str
) -> None:
    assert through_shell(redirection, *training)[0] == 0
    assert read_metrics(tmp_path / "run")[-1]["step"] == 30
    assert (tmp_path / "run" / "encoder" / "model.safetensors").exists()


def test_a_run_whose_screen_nobody_reads_any_more_ends_as_any_other(training: list[object], tmp_path: Path) -> None:
    command = [sys.executable, "-m", "simcse_train", *map(str, training)]
    with subprocess.Popen(command, stderr=subprocess.PIPE) as process:
        assert process.stderr is not None
        process.stderr.readline()
        process.stderr.close()
        assert process.wait(120) == 0
    assert read_metrics(tmp_path / "run")[-1]["step"] == 30
    assert (tmp_path / "run" / "encoder" / "model.safetensors").exists()


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="a device of Linux")
def test_a_result_that_cannot_be_written_is_said_in_a_line(text: Path, tiny: Path) -> None:
    status, said = through_shell(">/dev/full", "search", tiny, "a cat", "--data", text)
    assert status == 1
    assert said.split("\r")[-1].strip().startswith("Standard output can't be written: no space is left.")
    assert "Traceback" not in said


def test_closed_standard_input_is_an_empty_one(tiny: Path, text: Path, tmp_path: Path) -> None:
    for arguments, status, message in (
        (["--data", "-", "--model", tiny, "--output", tmp_path / "run"], 2, "standard input is empty"),
        (["encode", tiny, "-", tmp_path / "rows.npy"], 2, "standard input is empty"),
        (["search", tiny, "--data", text], 0, ""),
    ):
        found, said = through_shell("<&-", *arguments)
        assert (found, message in said, "Traceback" in said) == (status, True, False), said
    assert not list(tmp_path.iterdir())


def test_a_query_that_is_not_utf_8_is_read_as_far_as_it_is(tiny: Path, text: Path) -> None:
    status, said = through_shell("", "search", tiny, "--data", text, "--count", 1, given=b"a \xff cat\n")
    assert status == 0
    assert "> a \N{REPLACEMENT CHARACTER} cat\n" in said


def test_an_argument_that_is_not_utf_8_is_refused_before_anything_is_computed(
    training: list[object], text: Path, tmp_path: Path
) -> None:
    (tmp_path / "here").mkdir()
    folder = bytes(tmp_path) + b"/\xff"
    for arguments in ([*training, "--output", folder], ["search", "starter", b"\xff", "--data", text]):
        command: list[object] = [sys.executable, "-m", "simcse_train", *arguments]
        given = [argument if isinstance(argument, bytes) else str(argument) for argument in command]
        done = subprocess.run(given, capture_output=True)
        assert done.returncode == 2
        assert "holds bytes that are not UTF-8. If it is a name, rename the file" in done.stderr.decode()
        assert done.stderr.count(b"\n") == 1
    assert {path.name for path in tmp_path.iterdir()} == {"here"}


@pytest.mark.skipif(sys.platform == "darwin", reason="its file systems have no such names")
def test_a_text_below_a_folder_whose_name_is_not_utf_8_is_refused_before_training(
    text: Path, tiny: Path, tmp_path: Path
) -> None:
    folder = bytes(tmp_path) + b"/\xff"
    Path(os.fsdecode(folder)).mkdir()
    Path(os.fsdecode(folder), "t.txt").write_bytes(text.read_bytes())
    command = [sys.executable, "-m", "simcse_train", "--data", "t.txt", "--model", str(tiny), "--max-steps", "2"]
    done = subprocess.run(command, cwd=folder, capture_output=True)
    assert done.returncode == 2
    assert "holds bytes that are not UTF-8" in done.stderr.decode()
    assert not list(Path(os.fsdecode(folder)).glob("runs/*"))
