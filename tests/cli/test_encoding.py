"""--encoding is taken by every command that reads a text, and by the files of pairs beside it."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.cli.test_commands import refused, run

LINES = ["a café", "the man plays", "a cat runs", "the big dog sings"]  # one such letter: no encoding is certain


@pytest.fixture
def latin(tmp_path: Path) -> Path:
    path = tmp_path / "latin.txt"
    path.write_bytes("".join(line + "\n" for line in LINES).encode("latin-1"))
    return path


@pytest.mark.parametrize("command", ["search", "compare", "inspect", "encode"])
def test_every_command_on_a_text_takes_its_encoding(
    command: str, latin: Path, tiny: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "judge.tsv").write_bytes("a café\ta cat runs\t1\na café\tthe man plays\t0\n".encode("latin-1"))
    arguments: dict[str, tuple[object, ...]] = {
        "search": ("search", tiny, "a cat", "--data", latin, "--count", 4),
        "compare": ("compare", tiny, tiny, "--data", latin, "--judge", tmp_path / "judge.tsv"),
        "inspect": ("inspect", "--model", tiny, "--data", latin),
        "encode": ("encode", tiny, latin, tmp_path / "rows.npy"),
    }
    assert "--encoding" in refused(capsys, *arguments[command])
    if command == "compare":
        arguments[command] += ("--answers", tmp_path / "answers.jsonl")
    assert run(*arguments[command], "--encoding", "latin-1") == 0
    if command == "search":
        assert "a café" in capsys.readouterr().out


def test_pairs_beside_a_text_may_be_utf8_or_in_its_encoding(
    latin: Path, tiny: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--data", latin, "--model", tiny, "--epochs", 1, "--batch-size", 2, "--encoding", "latin-1"]
    for name in ("latin-1", "utf-8"):
        (tmp_path / f"{name}-pairs.tsv").write_bytes("a café\tthe man plays\na cat\tthe dog\n".encode(name))
        (tmp_path / f"{name}-labelled.tsv").write_bytes("a café\tthe man plays\t1\na cat\tthe dog\t2\n".encode(name))
    for name, other in (("latin-1", "utf-8"), ("utf-8", "latin-1")):
        files = ("--eval", tmp_path / f"{name}-labelled.tsv", "--pairs", tmp_path / f"{other}-pairs.tsv")
        assert run(*arguments, *files, "--output", tmp_path / f"run-{name}") == 0
    alone = ("--pairs", tmp_path / "utf-8-pairs.tsv", "--model", tiny, "--encoding", "latin-1")
    assert "is valid UTF-8, not --encoding latin-1" in refused(capsys, *alone, "--output", tmp_path / "alone")


def test_options_for_a_text_or_a_judge_that_is_not_there_are_refused(
    latin: Path, tiny: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "p.tsv").write_text("a man\tthe man\na cat\tthe cat\n")
    said = refused(capsys, "--pairs", tmp_path / "p.tsv", "--model", tiny, "--text-column", "body")
    assert "--text-column body is for the text of --data" in said
    said = refused(capsys, "compare", tiny, tiny, "--data", latin, "--judge-text-column", "body")
    assert "--judge-text-column" in said
    said = refused(capsys, "compare", tiny, tiny, "--data", latin, "--judge", tmp_path / "nowhere.tsv")
    assert f"--judge {tmp_path / 'nowhere.tsv'}: there is no such file" in said


def test_pairs_in_a_saved_data_set_are_used(tiny: Path, text: Path, tmp_path: Path) -> None:
    from datasets import Dataset

    pairs = {"sentence1": ["a man", "a cat", "the dog"], "sentence2": ["the man", "guitar", "a dog"]}
    Dataset.from_dict(pairs | {"score": [3.0, 0.0, 2.0]}).save_to_disk(tmp_path / "scored")
    Dataset.from_dict(pairs).save_to_disk(tmp_path / "pairs")
    files = ("--pairs", tmp_path / "pairs", "--eval", tmp_path / "scored")
    arguments = ("--model", tiny, "--epochs", 1, "--batch-size", 2, "--output", tmp_path / "run")
    assert run("--data", text, *files, *arguments) == 0
