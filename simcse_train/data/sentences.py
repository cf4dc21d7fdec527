"""What a batch is made from: numbered sentences whose text and token ids can be read."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray


class Sentences(Protocol):
    """Sentences numbered from 0, on disk (`Corpus`) or in memory (`SentenceList`)."""

    def __len__(self) -> int:
        """Return the number of sentences."""
        ...

    def tokens(self, sentences: NDArray[np.int64], /) -> list[list[int]]:
        """Return the token ids of the sentences with these numbers."""
        ...

    def texts(self, sentences: NDArray[np.int64], /) -> list[str]:
        """Return the sentences with these numbers."""
        ...


@dataclass(frozen=True)
class SentenceList:
    """Sentences in memory."""

    sentences: Sequence[str]
    input_ids: Sequence[list[int]]

    def __len__(self) -> int:
        return len(self.sentences)

    def tokens(self, sentences: NDArray[np.int64], /) -> list[list[int]]:
        """Return the token ids of the sentences with these numbers."""
        return [self.input_ids[number] for number in sentences.tolist()]

    def texts(self, sentences: NDArray[np.int64], /) -> list[str]:
        """Return the sentences with these numbers."""
        return [self.sentences[number] for number in sentences.tolist()]
