"""What the frozen start makes of sentences: their embeddings, and the same moved towards their nearest neighbours.

A bank of at most 16,384 evenly spaced sentences is embedded before the first step, and kept in the cache; a shorter
text is in it as a whole. A sentence outside the bank is embedded when it is asked for, so a text of millions of lines
costs no more at the beginning than one of 16,384. Neighbours are sought in the bank.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import normalize

from simcse_train.encoders.encoder import Encoder
from simcse_train.encoders.packing import moved
from simcse_train.search.embeddings import Autocast, Tokens, cached_embeddings, embed_rows_together
from simcse_train.search.index import nearest, smoothed

BANK = 16_384
QUANTILE_SAMPLE = 2048  # sentences whose pairs give the quantile of the cosines


def bank_positions(count: int) -> NDArray[np.int64]:
    """Return the positions, evenly spaced and rising, of the sentences that are in the bank of so many."""
    return np.linspace(0, count - 1, min(BANK, count), dtype=np.int64)


class Bank:
    """The embeddings of the sentences in the bank, and the frozen start for the others."""

    def __init__(
        self,
        encoder: Encoder,
        tokens: Tokens,
        numbers: NDArray[np.int64],
        text: str,
        *,
        asked: int,
        precision: str,
        autocast: Autocast,
    ) -> None:
        """Embed a bank of the sentences with these numbers (rising).

        `asked` is how many different sentences will be asked for: where all of them are in the bank, the encoder is not
        kept. The other parameters are those of `cached_embeddings`.
        """
        self._tokens, self._autocast = tokens, autocast
        self.numbers = numbers[bank_positions(len(numbers))]
        self._encoder = encoder if asked > len(self.numbers) else None
        held = cached_embeddings(encoder, tokens, self.numbers, text, precision=precision, autocast=autocast)
        self.embeddings = normalize(torch.from_numpy(np.array(held)).to(encoder.device).float())  # (bank, hidden)

    def start(self, numbers: NDArray[np.int64]) -> Tensor:
        """Return the start's embeddings (numbers, hidden) of sentences, of length 1; 0 for a negative number."""
        distinct, inverse = np.unique(numbers, return_inverse=True)
        return self._start(distinct, self._places(distinct))[self._moved(inverse)]

    def smoothed(self, numbers: NDArray[np.int64], k: int) -> Tensor:
        """Return the start's embeddings (numbers, hidden) moved towards the k nearest sentences in the bank."""
        distinct, inverse = np.unique(numbers, return_inverse=True)
        own = self._places(distinct)
        found = self._start(distinct, own)
        cosines, places = nearest(found, self.embeddings, k, exclude=torch.from_numpy(own))
        return smoothed(found, self.embeddings, cosines, places)[self._moved(inverse)]

    def _start(self, distinct: NDArray[np.int64], places: NDArray[np.int64]) -> Tensor:
        found = self.embeddings[self._moved(places.clip(min=0))].masked_fill_(self._moved(distinct < 0)[:, None], 0)
        (missing,) = np.nonzero((places < 0) & (distinct >= 0))
        if len(missing):
            assert self._encoder is not None
            tokens = self._tokens(distinct[missing])
            found[self._moved(missing)] = embed_rows_together(self._encoder, tokens, self._autocast)
        return found

    def quantile(self, share: float) -> float:
        """Return the cosine that is above this share of the cosines between different sentences of the bank."""
        count = min(QUANTILE_SAMPLE, len(self.numbers))
        rows = self.embeddings[torch.from_numpy(np.linspace(0, len(self.numbers) - 1, count, dtype=np.int64))]
        pairs = torch.triu_indices(count, count, offset=1)
        cosines = (rows @ rows.T).cpu()[pairs[0], pairs[1]].numpy()
        return float(np.quantile(cosines, share)) if len(cosines) else 1.0

    def _places(self, numbers: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return where sentences stand in the bank (numbers,), -1 for those that do not."""
        places = np.searchsorted(self.numbers, numbers).clip(max=len(self.numbers) - 1)
        return np.where(self.numbers[places] == numbers, places, -1)

    def _moved(self, array: NDArray[Any]) -> Tensor:
        return moved(torch.from_numpy(array), self.embeddings.device)
