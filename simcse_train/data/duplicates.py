"""The first of each of equal sentences, found in memory that does not grow with the text.

Sentences are compared by hashes of 64 bits: among 5 million the chance of one clash is below 1e-6. A text of more than
`HELD` sentences is divided by the first byte of the hash into files, each of which is small enough to be sorted.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

HELD = 2**18  # hashes in memory; more are written to files
FILES = 256


class FirstOfEach:
    """Takes the hashes of sentences in the order of the text, and then says which come first; `folder` is its own."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.count = folder, 0
        self._held: list[NDArray[np.uint64]] = []  # each (sentences, 2): hash and position
        self._held_count = 0
        self._is_divided = False

    def add(self, hashes: NDArray[np.uint64]) -> None:
        """Take the hashes of the next sentences."""
        positions = np.arange(self.count, self.count + len(hashes), dtype=np.uint64)
        self._held.append(np.stack([hashes, positions], axis=1))
        self.count += len(hashes)
        self._held_count += len(hashes)
        if self._held_count > HELD:
            self._divide()

    def find(self) -> NDArray[np.bool_]:
        """Return for each sentence whether it is the first with its hash (sentences,); a byte for each."""
        is_first = np.zeros(self.count, dtype=bool)
        for hashes, positions in self._groups():
            order = np.argsort(hashes, kind="stable")
            ordered = hashes[order]
            starts = np.ones(len(order), dtype=bool)
            starts[1:] = ordered[1:] != ordered[:-1]
            is_first[positions[order[starts]]] = True
        return is_first

    def _groups(self) -> Iterator[tuple[NDArray[np.uint64], NDArray[np.int64]]]:
        """Yield hashes and positions so that equal hashes are in one group, in the order of the text."""
        if self._is_divided:
            self._divide()
            for file in self.folder.iterdir():
                yield _columns(np.fromfile(file, dtype=np.uint64).reshape(-1, 2))
        elif self._held:
            yield _columns(np.concatenate(self._held))

    def _divide(self) -> None:
        """Append what is held to the files."""
        self.folder.mkdir(exist_ok=True)
        held = np.concatenate([np.zeros((0, 2), dtype=np.uint64), *self._held])
        place = (held[:, 0] >> np.uint64(56)).astype(np.int64)
        held = held[np.argsort(place, kind="stable")]
        ends = np.bincount(place, minlength=FILES).cumsum()
        for number, part in enumerate(np.split(held, ends[:-1])):
            if len(part):
                with (self.folder / f"{number:03}").open("ab") as stream:
                    stream.write(part.tobytes())
        self._held, self._held_count, self._is_divided = [], 0, True


def _columns(rows: NDArray[np.uint64]) -> tuple[NDArray[np.uint64], NDArray[np.int64]]:
    return rows[:, 0].copy(), rows[:, 1].astype(np.int64)
