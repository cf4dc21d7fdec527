"""What a report shows of a run: its settings, what it logged, and what its encoder made of held-out sentences."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from simcse_train.config import TrainConfig, make_config
from simcse_train.config_file import read_settings
from simcse_train.data.batches import held_out_sentences
from simcse_train.data.cache import Counts
from simcse_train.data.corpus import open_corpus
from simcse_train.errors import InputError
from simcse_train.evaluation.geometry import Space, look
from simcse_train.export.folder import load_saved_encoder
from simcse_train.export.model_card import exported_step
from simcse_train.report.verdict import judge_run, measures_by_step
from simcse_train.runs.checkpoint import State, newest_state
from simcse_train.runs.folder import CONFIG, ENCODER, checkpoint_path
from simcse_train.runs.metrics import read_metrics
from simcse_train.runs.start import load_start
from simcse_train.search.index import nearest

SHOWN = 20  # held-out sentences whose neighbours are shown
NEIGHBOURS = 5
LOGGED_ONLY = ("step", "epoch", "learning_rate", "sentences_per_second")  # of a line in metrics.jsonl, no measures


@dataclass(frozen=True)
class Neighbour:
    """A neighbour of a sentence, and whether it is one in this space alone, before or after training."""

    text: str
    cosine: float
    changed: bool


@dataclass(frozen=True)
class Example:
    """A held-out sentence with its nearest held-out sentences before and after training, nearest first."""

    text: str
    before: list[Neighbour]
    after: list[Neighbour]

    @property
    def changes(self) -> int:
        """The number of neighbours that are new after training."""
        return sum(neighbour.changed for neighbour in self.after)


@dataclass(frozen=True)
class Cosines:
    """Cosines of an encoder's embeddings of held-out sentences, of each kind of pair."""

    views: NDArray[np.float32]  # of two views of a sentence, which differ by dropout
    nearest: NDArray[np.float32]  # of a sentence and its nearest neighbour
    random: NDArray[np.float32]  # of two sentences drawn at random


@dataclass(frozen=True)
class Seen:
    """The held-out sentences of a run, and what its encoders before and after training make of them."""

    counts: Counts  # of the whole text
    texts: Sequence[str]
    spaces: tuple[Space, Space] | None  # None where there is no encoder after training yet


@dataclass(frozen=True)
class Summary:
    """A run as a report shows it; what could not be computed is None or empty, and `missing` says why."""

    run: Path
    config: TrainConfig
    finished: bool
    step: int  # of the encoder that is described
    steps: int | None  # of the whole run; None before its first checkpoint
    lines: list[dict[str, Any]]  # of metrics.jsonl
    verdict: str
    before: Mapping[str, float]
    after: Mapping[str, float]
    counts: Counts | None
    held_out: int
    cosines: tuple[Cosines, Cosines] | None  # before and after training
    examples: list[Example]
    missing: str | None

    def curve(self, measure: str) -> tuple[list[int], list[float]]:
        """Return the steps at which a measure was logged, and its values."""
        found = [(line["step"], line[measure]) for line in self.lines if _is_number(line.get(measure))]
        return [step for step, _ in found], [value for _, value in found]

    def measures(self) -> list[str]:
        """Return the names of all that was logged as a number, the loss first."""
        names = dict.fromkeys(key for line in self.lines for key in line if _is_number(line[key]))
        return sorted((name for name in names if name not in LOGGED_ONLY), key=lambda name: (name != "loss", name))


def summarise(run: Path, *, with_sentences: bool = True, seen: Seen | None = None) -> Summary:
    """Return what a report shows of a run, finished or not; without its sentences where only its curves are needed.

    `seen` is computed where it is not given. Raises `InputError` if the folder is no run.
    """
    if not (run / CONFIG).is_file():
        raise InputError(f"{run} is not a run: there is no {CONFIG} in it. Give the folder that simcse-train wrote.")
    config = make_config(read_settings(run / CONFIG), source=str(run / CONFIG))
    lines = read_metrics(run)
    newest = newest_state(run)
    finished = (run / ENCODER).is_dir() and (newest is None or newest.is_last)
    state = newest
    if newest is not None and finished and newest.best_step is not None:
        state = replace(newest, step=newest.best_step)
    exported = exported_step(run / ENCODER) if finished and newest is None else None  # its checkpoints were removed
    step = state.step if state else exported[0] if exported else 0
    measured = measures_by_step(lines)
    before, after = (measured.get(which, {}) for which in (0, step))
    missing = None
    if with_sentences and config.data and seen is None:
        try:
            seen = _look(run, config, state, finished)
        except InputError as error:
            missing = str(error)
    cosines, examples = (
        _compare(seen.texts, *seen.spaces) if seen is not None and seen.spaces is not None else (None, [])
    )
    return Summary(
        run=run,
        config=config,
        finished=finished,
        step=step,
        steps=state.steps if state else exported[1] if exported else None,
        lines=lines,
        verdict=str(judge_run(lines, step)),
        before=before,
        after=after,
        counts=seen.counts if seen is not None else None,
        held_out=len(seen.texts) if seen is not None else 0,
        cosines=cosines,
        examples=examples,
        missing=missing,
    )


def _look(run: Path, config: TrainConfig, state: State | None, finished: bool) -> Seen:
    """Embed the held-out sentences by the encoders before and after training, the exported one if it is `finished`."""
    start = load_start(run, config, state.start if state else None)
    corpus = open_corpus(
        config.data,
        config.text_column,
        start.tokenizer,
        config.max_length,
        expected=state.corpus if state else None,
        encoding=config.encoding,
    )
    numbers = held_out_sentences(len(corpus))
    if len(numbers) < 2 or not (finished or state):
        return Seen(corpus.counts, corpus.texts(numbers), None)
    trained = run if finished or state is None else checkpoint_path(run, state.step)
    end = load_saved_encoder(str(trained), pooling=config.pooling)
    rows = corpus.tokens(numbers)
    return Seen(corpus.counts, corpus.texts(numbers), (look(start, rows), look(end, rows)))


def _compare(texts: Sequence[str], before: Space, after: Space) -> tuple[tuple[Cosines, Cosines], list[Example]]:
    """Return the cosines in both spaces, and the sentences that are shown with their neighbours."""
    found = [_neighbours(space.embeddings) for space in (before, after)]
    cosines = [_cosines(space, cosines) for space, (cosines, _) in zip((before, after), found, strict=True)]
    return (cosines[0], cosines[1]), _examples(texts, found[0], found[1])


def _cosines(space: Space, of_neighbours: Tensor) -> Cosines:
    first, second = space.views
    return Cosines((first * second).sum(1).cpu().numpy(), of_neighbours[:, 0].cpu().numpy(), _random(space.embeddings))


def _neighbours(space: Tensor) -> tuple[Tensor, Tensor]:
    """Return cosines and numbers (sentences, five) of each sentence's nearest others."""
    own = torch.arange(len(space))
    return nearest(space, space, min(NEIGHBOURS, len(space) - 1), exclude=own)


def _random(space: Tensor) -> NDArray[np.float32]:
    """Return the cosines of pairs drawn at random, four for each sentence, the same pairs in each call."""
    generator = np.random.default_rng(0)
    first = np.repeat(np.arange(len(space)), 4)
    second = (first + generator.integers(1, len(space), size=len(first))) % len(space)
    cosines: NDArray[np.float32] = (space[first] * space[second]).sum(1).cpu().numpy()
    return cosines


def _examples(texts: Sequence[str], before: tuple[Tensor, Tensor], after: tuple[Tensor, Tensor]) -> list[Example]:
    chosen = np.unique(np.linspace(0, len(texts) - 1, min(SHOWN, len(texts)), dtype=np.int64)).tolist()

    def side(space: tuple[Tensor, Tensor], other: tuple[Tensor, Tensor], number: int) -> list[Neighbour]:
        cosines, numbers = space[0][number].tolist(), space[1][number].tolist()
        others = set(other[1][number].tolist())
        return [Neighbour(texts[n], cosine, n not in others) for cosine, n in zip(cosines, numbers, strict=True)]

    return [Example(texts[n], side(before, after, n), side(after, before, n)) for n in chosen]


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and bool(np.isfinite(value))
