"""The answers to a blind comparison: their file, what they say of the encoders, and the pairs that they become."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pydantic import TypeAdapter
from scipy.stats import binomtest

from simcse_train.errors import InputError
from simcse_train.runs.atomic import write_text

LEVEL = 0.05  # of the test, and of its interval

Choice = Literal["old", "new", "both", "neither"]


@dataclass(frozen=True)
class Answer:
    """A question's sentences and which neighbour was found to fit better."""

    query: str
    old: str
    new: str
    choice: Choice


@dataclass(frozen=True)
class Tally:
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


def outcome(answers: Iterable[Answer]) -> Tally:
    """Return who was preferred how often, with an exact binomial test of the answers that prefer one."""
    choices = [answer.choice for answer in answers]
    old, new, both, neither = (choices.count(name) for name in ("old", "new", "both", "neither"))
    if old + new == 0:
        return Tally(old, new, both, neither)
    test = binomtest(new, old + new)
    interval = test.proportion_ci(1 - LEVEL, method="exact")
    return Tally(old, new, both, neither, new / (old + new), (interval.low, interval.high), test.pvalue)


def describe(found: Tally) -> str:
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
    # A file that is empty, or was cut within its head, has no answers.
    if whole or not json.dumps(first_line(fingerprint)).encode().startswith(content):
        whole_answer = TypeAdapter(Answer)
        try:
            head, *records = [json.loads(line) for line in content[:whole].splitlines()]
            if head["comparison"] != fingerprint:
                raise InputError(
                    f"--answers {path} holds answers about other encoders or another text, or by another judge. Choose "
                    "another file."
                )
            for record in records:
                answer = whole_answer.validate_python(record)
                answers.setdefault(answer.query, answer)
        except (ValueError, TypeError, KeyError):
            raise InputError(f"--answers {path} is no file of answers. Choose another file.") from None
    if whole < len(content):
        os.truncate(path, whole)
    return list(answers.values())


def first_line(fingerprint: str) -> dict[str, str]:
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
