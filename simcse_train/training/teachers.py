"""The encoders beside the trained one, whose embeddings objectives use: the frozen start and a momentum copy."""

from __future__ import annotations

import copy
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import normalize

from simcse_train import distributed
from simcse_train.config import TrainConfig, objective_setting
from simcse_train.data.batches import Batch, Batches
from simcse_train.encoders.encoder import Encoder
from simcse_train.encoders.packing import moved, pack
from simcse_train.errors import InputError
from simcse_train.objectives.objective import Objective, Rows
from simcse_train.runs.folder import START
from simcse_train.runs.start import load_start
from simcse_train.search.bank import Bank, bank_positions
from simcse_train.search.cached_arrays import cached_array
from simcse_train.search.embeddings import Autocast, cached_embeddings, encoder_fingerprint
from simcse_train.search.index import mutual_neighbours

MOMENTUM = "momentum/"  # before the names of the momentum encoder's tensors in a checkpoint


class Teachers:
    """Gives the rows of each batch what the objective needs to know of them; holds no encoder without need."""

    def __init__(
        self,
        run: Path,
        config: TrainConfig,
        encoder: Encoder,
        batches: Batches,
        text: str,
        objective: Objective,
        autocast: Autocast,
    ) -> None:
        """Load the start from the run folder, and embed what has to be known before the first step.

        `text` is the fingerprint of the sentences of `batches`, to which neighbourhoods are given where needed.
        """
        self.config, self.batches, self.needs, self.autocast = config, batches, objective.needs, autocast
        self.bank: Bank | None = None
        self.similar_above: float | None = None
        self.momentum: Encoder | None = None
        if "momentum" in self.needs:
            # The tokenizer is shared: to copy it would take longer than to copy the weights.
            self.momentum = copy.deepcopy(encoder, {id(encoder.tokenizer): encoder.tokenizer}).requires_grad_(False)
            self.momentum.eval()
        if not needs_start(config, objective):
            return
        if not (run / START).exists():  # the model's own files may have changed since, and nobody would see it
            raise InputError(
                f"{run / START}, the encoder that the run started from, is gone, and --objective {config.objective} "
                "needs it. Restore that folder, or start a new run."
            )
        start = load_start(run, config).to(encoder.device)
        named = f"{text} {config.max_length}"
        if "members" in self.needs:
            batches.members = _members(start, batches, named, config, autocast)
        if config.mask_similar is not None or self.needs & {"start", "smoothed"}:
            self.bank = Bank(
                start,
                batches.tokens,
                batches.trained_at(bank_positions(batches.trained)),
                named,
                asked=batches.numbered - len(batches.held_out),
                precision=config.precision,
                autocast=autocast,
            )
        if self.bank is not None and config.mask_similar is not None:
            self.similar_above = self.bank.quantile(config.mask_similar)

    def rows(self, batch: Batch) -> Rows:
        """Return what the objective may know of the rows of a batch; of training pairs, only what a mask needs."""
        start = smoothed = members = momentum = None
        if self.bank is not None and (self.similar_above is not None or ("start" in self.needs and not batch.paired)):
            start = self.bank.start(batch.sources)
        if self.bank is not None and "smoothed" in self.needs and not batch.paired:
            smoothed = self.bank.smoothed(batch.sources, int(objective_setting(self.config, "neighbours")))
        if "members" in self.needs and self.batches.members is not None and not batch.paired:
            members = moved(torch.from_numpy(self.batches.members[batch.sources]), batch.texts.device)
        if self.momentum is not None and not batch.paired:
            momentum = self._momentum_rows(self.momentum, batch)
        return Rows(batch.views, batch.texts, start, smoothed, members, momentum, self.similar_above)

    @torch.no_grad()
    def after_step(self, encoder: Encoder) -> None:
        """Move the momentum encoder towards the trained one (He et al. 2020, arXiv 1911.05722, equation 2)."""
        if self.momentum is not None:
            share = 1 - objective_setting(self.config, "momentum")
            for slow, fast in zip(self.momentum.parameters(), encoder.parameters(), strict=True):
                slow.lerp_(fast, share)

    def state(self) -> dict[str, Tensor]:
        """Return the momentum encoder's tensors, for the checkpoint."""
        if self.momentum is None:
            return {}
        return {MOMENTUM + name: parameter.detach() for name, parameter in self.momentum.named_parameters()}

    @torch.no_grad()
    def load_state(self, tensors: dict[str, Tensor]) -> None:
        """Restore what `state` returned."""
        if self.momentum is not None:
            for name, parameter in self.momentum.named_parameters():
                parameter.copy_(tensors[MOMENTUM + name])

    @torch.no_grad()
    def _momentum_rows(self, momentum: Encoder, batch: Batch) -> Tensor:
        """Return each row's sentence under the momentum encoder (rows, hidden), without dropout, of length 1."""
        rows = self.batches.tokens(batch.sentences)
        first, end = distributed.shares(len(rows))[distributed.rank()]
        size = self.config.micro_batch_size or len(rows)
        found = [torch.zeros(0, momentum.hidden_size, device=batch.texts.device)]
        for start in range(first, end, size):
            with self.autocast():
                found.append(momentum(*pack(rows[start : min(start + size, end)], batch.texts.device)).float())
        embeddings = distributed.gather_shares(normalize(torch.cat(found)), len(rows))
        return embeddings.repeat_interleave(batch.views, 0)


def _members(start: Encoder, batches: Batches, text: str, config: TrainConfig, autocast: Autocast) -> NDArray[np.int32]:
    """Return each sentence's own number and those of its mutual neighbours under the start, (sentences, K + 1)."""
    trained, k = batches.trained_at(np.arange(batches.trained)), int(objective_setting(config, "neighbours"))
    assert batches.text is not None
    held = cached_embeddings(start, batches.tokens, trained, text, precision=config.precision, autocast=autocast)

    def write(out: NDArray[np.int32]) -> None:
        out[:] = np.arange(len(out), dtype=np.int32)[:, None]  # a sentence that is held out has no neighbours
        out[trained] = trained[mutual_neighbours(torch.from_numpy(held).to(start.device), k)]

    key = [encoder_fingerprint(start), start.tokenizer.fingerprint(), text, config.precision, len(batches.held_out)]
    return cached_array("neighbours", key, (len(batches.text), k + 1), np.int32, write)


def needs_start(config: TrainConfig, objective: Objective) -> bool:
    """Return whether the run needs the encoder that it started from."""
    return config.mask_similar is not None or bool(objective.needs & {"start", "smoothed", "members"})
