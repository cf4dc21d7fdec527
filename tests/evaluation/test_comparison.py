from __future__ import annotations

import json
import resource
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from simcse_train.data.pairs import Pair, read_pairs
from simcse_train.encoders.loading import load_encoder
from simcse_train.encoders.saving import save_encoder
from simcse_train.errors import InputError, SaveError
from simcse_train.evaluation.answers import Answer, Choice, describe, outcome, read_answers, write_pairs
from simcse_train.evaluation.comparison import (
    Comparison,
    Question,
    Sheet,
    ask,
    choice_of,
    labels_as_judge,
    pairs_as_judge,
)
from tests.cli.test_commands import refused, run


@pytest.fixture(scope="module")
def comparison(tiny: Path, text: Path) -> Comparison:
    """The same weights with two poolings, whose neighbours differ."""
    return Comparison(load_encoder(tiny, pooling="cls"), load_encoder(tiny, pooling="mean"), [str(text)])


def test_a_question_shows_the_nearest_neighbour_in_each_space(comparison: Comparison, tiny: Path, text: Path) -> None:
    sentences = comparison.corpus.texts(np.arange(len(comparison.corpus)))
    questions = list(comparison.questions())
    assert len({question.query for question in questions}) == len(questions) > 20
    assert 0.2 < np.mean([question.new_left for question in questions]) < 0.8
    for name, pooling in (("old", "cls"), ("new", "mean")):
        rows = load_encoder(tiny, pooling=pooling).encode(sentences)
        cosines = rows @ rows.T - 2 * np.eye(len(rows))
        for question in questions:
            row = cosines[sentences.index(question.query)]
            assert row[sentences.index(getattr(question, name))] == pytest.approx(row.max(), abs=2e-3)
    assert all(question.old != question.new for question in questions)
    assert list(comparison.questions()) == questions  # so that a comparison can be continued


def test_an_encoder_has_no_question_against_a_copy_of_itself(tiny: Path, text: Path, tmp_path: Path) -> None:
    same = Comparison(load_encoder(tiny), load_encoder(tiny), [str(text)])
    assert list(same.questions()) == []
    found = outcome(ask(same, lambda _: "new", tmp_path / "a.jsonl", None))
    assert not found.differs
    assert "No answer prefers" in describe(found)


def test_each_encoder_cuts_a_sentence_at_its_own_length(tiny: Path, text: Path, tmp_path: Path) -> None:
    save_encoder(load_encoder(tiny), tmp_path)
    (tmp_path / "sentence_bert_config.json").write_text(json.dumps({"max_seq_length": 8, "do_lower_case": False}))
    encoders = load_encoder(tiny), load_encoder(tmp_path)
    found = Comparison(*encoders, [str(text)])
    sentences = found.corpus.texts(np.arange(len(found.corpus)))
    for space, encoder in zip(found.spaces, encoders, strict=True):
        assert np.allclose(space, encoder.encode(sentences), atol=2e-3)


def test_a_side_means_the_encoder_that_stands_there() -> None:
    for new_left in (True, False):
        question = Question("q", "of old", "of new", new_left)
        assert question.sides[0 if new_left else 1] == "of new"
        assert choice_of(question, "left" if new_left else "right") == "new"
        assert choice_of(question, "right" if new_left else "left") == "old"
        assert choice_of(question, "both") == "both"


def test_answers_are_on_disk_at_once_and_continued(comparison: Comparison, tmp_path: Path) -> None:
    path = tmp_path / "answers.jsonl"
    seen: list[str] = []

    def judge(question: Question) -> Choice:
        assert len(read_answers(path, comparison.answers_fingerprint)) == len(seen)
        if len(seen) == 5:
            raise KeyboardInterrupt
        seen.append(question.query)
        return "new"

    with pytest.raises(KeyboardInterrupt):
        ask(comparison, judge, path, None)
    with path.open("a") as stream:
        stream.write('{"query": "cut by a ki')
    later: list[str] = []

    def another(question: Question) -> Choice:
        later.append(question.query)
        return "old"

    answers = ask(comparison, another, path, 8)
    assert [answer.choice for answer in answers] == ["new"] * 5 + ["old"] * 3
    assert not set(seen) & set(later)
    assert read_answers(path, comparison.answers_fingerprint) == answers
    with pytest.raises(InputError, match="other encoders or another text"):
        read_answers(path, "another")
    (tmp_path / "other.jsonl").write_text('{"a": 1}\n')
    with pytest.raises(InputError, match="no file of answers"):
        read_answers(tmp_path / "other.jsonl", "x")


def test_answers_about_another_text_are_not_continued(comparison: Comparison, tiny: Path, tmp_path: Path) -> None:
    (tmp_path / "x.txt").write_text("".join(f"the man plays {i} {7 * i % 10} guitar\n" for i in range(30)))
    encoders = load_encoder(tiny, pooling="cls"), load_encoder(tiny, pooling="mean")
    Sheet(comparison, tmp_path / "a.jsonl").answer("new")
    other = Comparison(*encoders, [str(tmp_path / "x.txt")])
    with pytest.raises(InputError, match="other encoders or another text"):
        Sheet(other, tmp_path / "a.jsonl")


def test_answers_are_those_of_two_encoders_with_their_tokenizers_and_of_one_judge(tiny: Path, text: Path) -> None:
    def fingerprints(prompt: str = "", max_length: int = 64, judge: str = "") -> tuple[str, str]:
        encoders = load_encoder(tiny, pooling="cls"), load_encoder(tiny, pooling="mean")
        encoders[1].tokenizer.prompt, encoders[1].max_length = prompt, max_length
        found = Comparison(*encoders, [str(text)], judge=judge)
        return found.fingerprint, found.answers_fingerprint

    plain, judged = fingerprints(), fingerprints(judge="labels")
    assert plain == fingerprints()
    assert judged[0] == plain[0]  # so that all judges are asked the same
    others = [plain[1], judged[1], fingerprints(judge="other labels")[1], fingerprints(max_length=6)[1]]
    assert len({*others, fingerprints(prompt="a man")[1]}) == 5


def test_an_answer_that_was_given_on_two_pages_counts_once(comparison: Comparison, tmp_path: Path) -> None:
    first, second = (Sheet(comparison, tmp_path / "a.jsonl") for _ in range(2))
    first.answer("new")
    second.answer("old")
    second.answer("old")
    assert [answer.choice for answer in Sheet(comparison, tmp_path / "a.jsonl").answers] == ["new", "old"]


def test_another_judge_is_asked_again(
    capsys: pytest.CaptureFixture[str], tiny: Path, text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = tmp_path / "other"
    other.mkdir()
    save_encoder(load_encoder(tiny, pooling="mean"), other)
    sentences = list(dict.fromkeys(text.read_text().splitlines()))
    monkeypatch.chdir(tmp_path)
    choices: list[list[str]] = []
    for kinds in (2, 3):
        lines = [f"{number % kinds}\t{sentence}\n" for number, sentence in enumerate(sentences)]
        (tmp_path / "labels.tsv").write_text("".join(lines))
        command = ("compare", tiny, other, "--data", text, "--judge", "labels.tsv", "--label-column", "1")
        assert run(*command) == 0
        (own,) = tmp_path.glob("compare-*.jsonl")
        choices.append([answer.choice for answer in read_answers_of(own)])
        own.rename(tmp_path / f"kept-{kinds}")
        assert run(*command, "--answers", f"kept-{kinds}") == 0
    assert len(choices[0]) == len(choices[1]) > 20
    assert choices[0] != choices[1]
    assert "by another judge. Choose another file" in refused(capsys, *command, "--answers", "kept-2")


@pytest.mark.parametrize(
    "content",
    [
        b"my notes\nwithout an end",
        b"\xff\x00\n\xfe",
        b'{"comparison": "other"}\n{"cut',
        b"x",
        b'{"comparison": "fingerprint"}\n{"query": "q", "old": "a", "new": "b", "choice": "Neu"}\n',
        b'{"comparison": "fingerprint"}\n{"query": "q", "old": "a", "new": 1, "choice": "new"}\n',
    ],
)
def test_a_file_that_holds_no_answers_is_left_as_it_is(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "notes.txt").write_bytes(content)
    with pytest.raises(InputError, match="is no file of answers|about other encoders"):
        read_answers(tmp_path / "notes.txt", "fingerprint")
    assert (tmp_path / "notes.txt").read_bytes() == content


def test_a_file_cut_within_its_first_line_is_begun_again(comparison: Comparison, tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"comparison": "' + comparison.answers_fingerprint[:7])
    assert len(ask(comparison, lambda _: "new", path, 2)) == 2
    assert len(read_answers(path, comparison.answers_fingerprint)) == 2


def test_an_answer_that_finds_no_space_leaves_the_file_readable(comparison: Comparison, tmp_path: Path) -> None:
    sheet = Sheet(comparison, tmp_path / "a.jsonl")
    sheet.answer("new")
    size = sheet.path.stat().st_size
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size + 20, limits[1]))
    try:
        with pytest.raises(SaveError, match="can't be written"):
            sheet.answer("old")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert sheet.path.stat().st_size == size
    sheet.answer("both")
    assert [answer.choice for answer in read_answers(sheet.path, comparison.answers_fingerprint)] == ["new", "both"]


def answers_of(choices: Sequence[Any]) -> list[Answer]:
    return [Answer(f"q{i}", "o", "n", choice) for i, choice in enumerate(choices)]


def test_the_test_is_the_exact_binomial_one() -> None:
    found = outcome(answers_of(["new"] * 9 + ["old"] + ["both"] * 3 + ["neither"] * 2))
    assert (found.new, found.old, found.both, found.neither) == (9, 1, 3, 2)
    assert found.p_value == pytest.approx(2 * (1 + 10) / 1024)
    assert found.interval == pytest.approx((0.55498, 0.99747), abs=1e-4)
    assert "The new encoder finds the better" in describe(found)
    assert "could be chance" in describe(outcome(answers_of(["new"] * 5 + ["old"] * 4)))
    assert "The old encoder" in describe(outcome(answers_of(["old"] * 9 + ["new"])))


def test_a_thousand_users_without_a_preference_are_rarely_told_of_one() -> None:
    generator = np.random.default_rng(0)
    alarms = [outcome(answers_of(generator.choice(["old", "new"], size=60).tolist())).differs for _ in range(1000)]
    assert 0.01 < np.mean(alarms) <= 0.065  # the exact test of 60 answers has a level of 2.7 to 5 %


def test_labels_and_scored_pairs_judge() -> None:
    by_label = labels_as_judge(["q", "a", "b", "c"], ["x", "x", "y", "x"])
    assert by_label(Question("q", "a", "b", True)) == "old"
    assert by_label(Question("q", "b", "a", True)) == "new"
    assert by_label(Question("q", "a", "c", True)) == "both"
    assert by_label(Question("b", "a", "c", True)) == "neither"
    assert by_label(Question("q", "a", "unknown", True)) is None
    twice = labels_as_judge(["q", "q", "a", "b", "c"], ["x", "y", "x", "y", "z"])
    assert twice(Question("q", "a", "b", True)) == "both"
    assert twice(Question("q", "a", "c", True)) == "old"
    scored = [("q", "a", 5), ("b", "q", 2), ("q", "c", 5), ("q", "d", 0), ("q", "f", 4), ("g", "q", 4), ("q", "h", 2)]
    by_score = pairs_as_judge([Pair(*pair) for pair in scored])
    assert by_score(Question("q", "b", "a", True)) == "new"
    assert by_score(Question("q", "a", "c", True)) == "both"
    assert by_score(Question("q", "f", "g", True)) == "both"  # above the middle of 0 and 5
    assert by_score(Question("q", "b", "h", True)) == "neither"
    assert by_score(Question("q", "a", "e", True)) is None


def test_answers_become_pairs_that_are_read_again(tmp_path: Path) -> None:
    answers = [
        Answer("q1", "old one", "new one", "new"),
        Answer("q2", "old\ttwo", 'new "two"', "both"),
        Answer("q3", "old three", "new three", "neither"),
    ]
    assert write_pairs(answers, tmp_path / "eval.jsonl", scored=True) == 6
    assert [pair.score for pair in read_pairs(tmp_path / "eval.jsonl")] == [0, 1, 1, 1, 0, 0]
    assert write_pairs(answers, tmp_path / "pairs.jsonl", scored=False) == 3
    records = [json.loads(line) for line in (tmp_path / "pairs.jsonl").read_text().splitlines()]
    assert records[0] == {"anchor": "q1", "positive": "new one", "negative": "old one"}
    assert records[1] == {"anchor": "q2", "positive": "old\ttwo"}


def test_the_command_asks_saves_and_continues(
    capsys: pytest.CaptureFixture[str], tiny: Path, text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = tmp_path / "other"
    encoder = load_encoder(tiny, pooling="mean")
    other.mkdir()
    save_encoder(encoder, other)
    command = ("compare", tiny, other, "--data", text, "--answers", tmp_path / "a.jsonl")
    replies = iter(["1", "what?", "2", "b", "q"])
    monkeypatch.setattr("builtins.input", lambda _: next(replies))
    assert run(*command) == 0
    assert "both 1, neither 0." in capsys.readouterr().out
    replies = iter(["n"])
    assert run(*command, "--questions", "4", "--write-eval", tmp_path / "e.jsonl") == 0
    assert "both 1, neither 1." in capsys.readouterr().out
    assert len(read_pairs(tmp_path / "e.jsonl")) == 8
    assert "must end in .jsonl" in refused(capsys, *command, "--write-pairs", tmp_path / "p.tsv")
    assert f"--answers {text} would replace" in refused(capsys, *command[:-1], text)
    assert f"--write-eval {command[-1]} would replace" in refused(capsys, *command, "--write-eval", command[-1])
    monkeypatch.chdir(tmp_path)
    replies = iter(["1", "q"])
    assert run(*command[:-2]) == 0  # into a file with a name of its own
    (own,) = tmp_path.glob("compare-*.jsonl")
    assert f"--write-eval {own.name} would replace" in refused(capsys, *command[:-2], "--write-eval", own.name)
    assert "can't be read: Is a directory" in refused(capsys, *command[:-1], tmp_path)
    assert "name it with --judge" in refused(capsys, *command, "--label-column", "x")


@pytest.mark.slow
def test_labels_prefer_the_better_encoder_and_not_a_copy(
    capsys: pytest.CaptureFixture[str], minilm: Path, shared: Path, tmp_path: Path
) -> None:
    import gzip

    lines = gzip.decompress((shared / "domains" / "banking77-test.tsv.gz").read_bytes()).decode()
    (tmp_path / "labelled.tsv").write_text(lines)
    (tmp_path / "text.txt").write_text("".join(line.split("\t")[1] + "\n" for line in lines.splitlines()))
    common = ("--data", tmp_path / "text.txt", "--judge", tmp_path / "labelled.tsv", "--label-column", "1")
    assert run("compare", "starter", minilm, *common, "--answers", tmp_path / "a.jsonl") == 0
    shown = capsys.readouterr().out
    assert "The new encoder finds the better neighbours." in shown
    assert outcome(read_answers_of(tmp_path / "a.jsonl")).p_value < 0.01  # type: ignore[operator]
    assert run("compare", minilm, minilm, *common, "--answers", tmp_path / "b.jsonl") == 0
    assert "No answer prefers one" in capsys.readouterr().out


def read_answers_of(path: Path) -> list[Answer]:
    return read_answers(path, json.loads(path.read_text().split("\n", 1)[0])["comparison"])
