"""Neighbours as positives: a sentence is pulled towards one of its mutual nearest neighbours under the frozen start."""

from __future__ import annotations

from dataclasses import dataclass

from simcse_train.objectives.ntxent import NTXent
from simcse_train.objectives.objective import Need


@dataclass(frozen=True)
class Neighbours(NTXent):
    """NT-Xent on batches whose second view is a neighbour (see `data.views`); a neighbourhood holds no negatives.

    Two sentences are mutual neighbours if each is among the K nearest of the other. A sentence without one has its twin
    as positive. Source: NNCLR, Dwibedi et al. 2021 (arXiv 2104.14548), here with mutual neighbours among all sentences
    of the text.
    """

    @property
    def needs(self) -> frozenset[Need]:
        """The neighbourhood of each row."""
        return frozenset({"members"})
