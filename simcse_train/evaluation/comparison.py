"""A blind comparison of two encoders by the neighbours that they find, judged by a person or by labels.

A question shows a sentence of the text and its nearest neighbour in the space of each encoder, in random order and
without names; sentences whose neighbour is the same are not asked. Of the answers that prefer one side, an exact
binomial test tells whether the preference could be chance. The answers can become labelled pairs (`--eval`) or pairs to
learn from (`--pairs`).
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch

from simcse_train.data.cache import digest
from simcse_train.data.corpus import open_corpus
from simcse_train.data.pairs import Pair
from simcse_train.encoders.encoder import Encoder
from simcse_train.errors import SaveError
from simcse_train.evaluation.answers import Answer, Choice, first_line, read_answers
from simcse_train.search.embeddings import cached_embeddings, encoder_fingerprint
from simcse_train.search.index import nearest

BLOCK = 256  # sentences whose neighbours are looked up at once

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


def labels_as_judge(sentences: Sequence[str], labels: Sequence[str]) -> Callable[[Question], Choice | None]:
    """Return a judge for whom a neighbour fits if it shares a label with the query; None where a label is not known."""
    known: dict[str, set[str]] = {}  # a sentence can stand under several labels
    for sentence, label in zip(sentences, labels, strict=True):
        known.setdefault(sentence, set()).add(label)

    def grade(query: str, candidate: str) -> float | None:
        if query not in known or candidate not in known:
            return None
        return float(not known[query].isdisjoint(known[candidate]))

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
            self._append(first_line(comparison.answers_fingerprint))
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
