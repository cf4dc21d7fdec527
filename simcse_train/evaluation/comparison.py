"""A blind comparison of two encoders by the neighbours that they find, judged by a person or by labels.

A question shows a sentence of the text and its nearest neighbour in the space of each encoder, in random order and
without names; sentences whose neighbour is the same are not asked. Of the answers that prefer one side, an exact
binomial test tells whether the preference could be chance. The answers can become labelled pairs (`--eval`) or pairs to
learn from (`--pairs`).
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from scipy.stats import binomtest

from simcse_train.data.cache import digest
from simcse_train.data.corpus import open_corpus
from simcse_train.data.pairs import Pair
from simcse_train.encoders.encoder import Encoder
from simcse_train.errors import InputError, SaveError
from simcse_train.runs.atomic import write_text
from simcse_train.search.embeddings import cached_embeddings, encoder_fingerprint
from simcse_train.search.index import nearest

BLOCK = 256  # sentences whose neighbours are looked up at once
LEVEL = 0.05  # of the test, and of its interval

Choice = Literal["old", "new", "both", "neither"]
Side = Literal["left", "right", "both", "neither"]


@dataclass(frozen=True)
class Question:
    """A sentence and its nearest neighbour in each space; `new_left` says which stands on the left."""

    query: str
    old: str
    new: str
    new_left: bool

    @property
    def sides(self) -> tuple[str, str]:
        """The two candidates as they are shown, left and right."""
        return (self.new, self.old) if self.new_left else (self.old, self.new)


@dataclass(frozen=True)
class Answer:
    """A question's sentences and which neighbour was found to fit better."""

    query: str
    old: str
    new: str
    choice: Choice


@dataclass(frozen=True)
class Outcome:
    """The answers counted, and the new encoder's share of those that prefer one, with its interval and p-value."""

    old: int
    new: int
    both: int
    neither: int
    share: float | None = None  # new among old and new; None where no answer prefers one
    interval: tuple[float, float] | None = None  # exact, 95 % (Clopper & Pearson 1934)
    p_value: float | None = None  # two-sided, against a share of one half

    @property
    def differs(self) -> bool:
        """Whether the preference is unlikely to be chance, at the level of 5 %."""
        return self.p_value is not None and self.p_value < LEVEL


class Comparison:
    """Two encoders over one text: what there is to ask, in an order that depends on the text and the encoders alone."""

    def __init__(
        self,
        old: Encoder,
        new: Encoder,
        data: Sequence[str],
        text_column: str | None = None,
        encoding: str | None = None,
        judge: str = "",
    ) -> None:
        """Compare the encoders; `judge` names the labels or scores that answer, nothing a person."""
        self.corpus = open_corpus(data, text_column, old.tokenizer, old.max_length, encoding=encoding)
        numbers = np.arange(len(self.corpus), dtype=np.int64)
        self.spaces = []
        for encoder in (old, new):

            def tokens(chosen: np.ndarray, encoder: Encoder = encoder) -> list[list[int]]:
                return encoder.tokenizer.tokenize(self.corpus.texts(chosen), encoder.max_length)

            key = f"{self.corpus.fingerprint} {encoder.max_length} {old.tokenizer.fingerprint()}"
            self.spaces.append(torch.from_numpy(cached_embeddings(encoder, tokens, numbers, key)))
        sides = [[encoder_fingerprint(e), e.tokenizer.fingerprint(), e.max_length] for e in (old, new)]
        self.fingerprint = digest([*sides, self.corpus.fingerprint])
        self.answers_fingerprint = digest([self.fingerprint, judge])  # the questions are the same for all judges

    def questions(self) -> Iterator[Question]:
        """Yield the questions; each sentence of the text is asked about at most once."""
        generator = np.random.default_rng(int(self.fingerprint[:16], 16))
        order = generator.permutation(len(self.corpus))
        for start in range(0, len(order), BLOCK):
            numbers = order[start : start + BLOCK]
            own = torch.from_numpy(numbers)
            old, new = (nearest(space[own], space, 1, exclude=own)[1][:, 0].numpy() for space in self.spaces)
            new_left = generator.random(len(numbers)) < 0.5
            texts = [self.corpus.texts(chosen) for chosen in (numbers, old, new)]
            for query, first, second, left in zip(*texts, new_left.tolist(), strict=True):
                if first != second:
                    yield Question(query, first, second, left)


def choice_of(question: Question, side: Side) -> Choice:
    """Return which encoder a choice of a side means."""
    if side in ("both", "neither"):
        return side  # the two names that both have
    return "new" if (side == "left") == question.new_left else "old"


def outcome(answers: Iterable[Answer]) -> Outcome:
    """Return who was preferred how often, with an exact binomial test of the answers that prefer one."""
    choices = [answer.choice for answer in answers]
    old, new, both, neither = (choices.count(name) for name in ("old", "new", "both", "neither"))
    if old + new == 0:
        return Outcome(old, new, both, neither)
    test = binomtest(new, old + new)
    interval = test.proportion_ci(1 - LEVEL, method="exact")
    return Outcome(old, new, both, neither, new / (old + new), (interval.low, interval.high), test.pvalue)


def describe(found: Outcome) -> str:
    """Return the outcome as a paragraph."""
    counted = f"New {found.new}, old {found.old}, both {found.both}, neither {found.neither}."
    if found.share is None or found.interval is None or found.p_value is None:
        return f"{counted} No answer prefers one of the encoders."
    low, high = found.interval
    figures = (
        f"Of {found.old + found.new} answers that prefer one, {100 * found.share:.0f} % prefer the new encoder "
        f"(95 % interval {100 * low:.0f} to {100 * high:.0f} %; exact binomial test, p = {found.p_value:.2g})."
    )
    if found.differs:
        return f"{counted} {figures} The {'new' if found.share > 0.5 else 'old'} encoder finds the better neighbours."
    return f"{counted} {figures} This could be chance: more answers are needed to tell the encoders apart."


def labels_as_judge(sentences: Sequence[str], labels: Sequence[str]) -> Callable[[Question], Choice | None]:
    """Return a judge for whom a neighbour fits if it has the query's label; None where a label is not known."""
    label = dict(zip(sentences, labels, strict=True))

    def grade(query: str, candidate: str) -> float | None:
        known = query in label and candidate in label
        return float(label[query] == label[candidate]) if known else None

    return _judge(grade, fits=1)


def pairs_as_judge(pairs: Sequence[Pair]) -> Callable[[Question], Choice | None]:
    """Return a judge who prefers the neighbour with the higher score; None where a pair is not scored."""
    score = {frozenset(pair[:2]): pair.score for pair in pairs}
    middle = (max(score.values()) + min(score.values())) / 2
    return _judge(lambda query, candidate: score.get(frozenset((query, candidate))), fits=middle)


def _judge(grade: Callable[[str, str], float | None], fits: float) -> Callable[[Question], Choice | None]:
    def judge(question: Question) -> Choice | None:
        old, new = grade(question.query, question.old), grade(question.query, question.new)
        if old is None or new is None:
            return None
        if old != new:
            return "new" if new > old else "old"
        return "both" if old >= fits else "neither"

    return judge


class Sheet:
    """The answers to a comparison in a file, each of them on the disk before the next question."""

    def __init__(self, comparison: Comparison, path: Path) -> None:
        """Read the answers that were given before, or begin a file.

        Raises `InputError` if the answers are about something else, `SaveError` if the file cannot be written.
        """
        self.path = path
        self.answers = read_answers(path, comparison.answers_fingerprint)
        if not path.exists() or not path.stat().st_size:
            self._append(_head(comparison.answers_fingerprint))
        answered = {answer.query for answer in self.answers}
        self._open = (question for question in comparison.questions() if question.query not in answered)
        self._question = next(self._open, None)

    def question(self, count: int | None) -> Question | None:
        """Return what to ask next; None after `count` answers, or if there is nothing left to ask."""
        return self._question if count is None or len(self.answers) < count else None

    def answer(self, choice: Choice | None) -> None:
        """Keep the answer to the present question, none to leave it out, and go on to the next one.

        Raises `SaveError` if the file cannot be written.
        """
        if self._question is not None and choice is not None:
            answer = Answer(self._question.query, self._question.old, self._question.new, choice)
            self._append(asdict(answer))
            self.answers.append(answer)
        self._question = next(self._open, None)

    def _append(self, record: dict[str, str]) -> None:
        size = None
        try:
            with self.path.open("a", encoding="utf-8") as stream:
                size = stream.tell()
                stream.write(json.dumps(record) + "\n")
                stream.flush()
                os.fsync(stream.fileno())
        except OSError as error:
            if size is not None:  # half of a line would make one line of it and the next answer
                os.truncate(self.path, size)
            raise SaveError(
                f"{self.path} can't be written: {error.strerror}. Choose another file with --answers."
            ) from None


def ask(
    comparison: Comparison, judge: Callable[[Question], Choice | None], answers_file: Path, count: int | None
) -> list[Answer]:
    """Ask a judge up to `count` questions, those answered before included, and return all answers.

    A judge ends the questions by raising `StopIteration`, and leaves one out by returning None. Raises as `Sheet` does.
    """
    sheet = Sheet(comparison, answers_file)
    while (question := sheet.question(count)) is not None:
        try:
            choice = judge(question)
        except StopIteration:
            break
        sheet.answer(choice)
    return sheet.answers


def read_answers(path: Path, fingerprint: str) -> list[Answer]:
    """Return the answers of a file, none where there is no file; a last line that a kill cut short is removed.

    Of two answers to one question, as two pages can give, the first counts. Raises `InputError` if they are about other
    encoders or another text, or by another judge, or if the file is none of answers.
    """
    try:
        content = path.read_bytes() if path.exists() else b""
    except OSError as error:
        raise InputError(f"--answers {path} can't be read: {error.strerror}. Choose another file.") from None
    whole = content.rfind(b"\n") + 1
    answers: dict[str, Answer] = {}  # by question
    if whole or not json.dumps(_head(fingerprint)).encode().startswith(content):  # else nothing, or a part of the head
        try:
            head, *records = [json.loads(line) for line in content[:whole].splitlines()]
            if head["comparison"] != fingerprint:
                raise InputError(
                    f"--answers {path} holds answers about other encoders or another text, or by another judge. Choose "
                    "another file."
                )
            for record in records:
                answer = Answer(**record)
                answers.setdefault(answer.query, answer)
        except (ValueError, TypeError, KeyError):
            raise InputError(f"--answers {path} is no file of answers. Choose another file.") from None
    if whole < len(content):
        os.truncate(path, whole)
    return list(answers.values())


def _head(fingerprint: str) -> dict[str, str]:
    """Return the first line of a file of answers."""
    return {"comparison": fingerprint}


def write_pairs(answers: Iterable[Answer], path: Path, *, scored: bool) -> int:
    """Write what the answers say as pairs in a .jsonl file; return how many.

    scored: sentence1, sentence2 and score (1 for a neighbour that fits, else 0), for `--eval`. Otherwise anchor,
    positive and, where the other neighbour does not fit, negative, for `--pairs`. Raises `SaveError` if that fails.
    """
    records: list[dict[str, object]] = []
    for answer in answers:
        old, new = answer.choice in ("old", "both"), answer.choice in ("new", "both")
        candidates = [(answer.old, old), (answer.new, new)]
        if scored:
            records += [{"sentence1": answer.query, "sentence2": s, "score": int(fits)} for s, fits in candidates]
            continue
        negative = [{"negative": s} for s, fits in candidates if not fits]
        records += [{"anchor": answer.query, "positive": s, **(negative or [{}])[0]} for s, fits in candidates if fits]
    write_text(path, "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records))
    return len(records)
