"""The encoders beside the one that is trained: the frozen start and a momentum copy, whose embeddings objectives use."""

from __future__ import annotations

import copy
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import normalize

from simcse_train.config import TrainConfig, objective_setting
from simcse_train.data.batches import Batch, Batches
from simcse_train.encoders.encoder import Encoder
from simcse_train.encoders.loading import load_encoder
from simcse_train.encoders.saving import ENCODER, save_encoder
from simcse_train.errors import InputError
from simcse_train.objectives.objective import Objective, Rows
from simcse_train.runs.atomic import write_folder
from simcse_train.runs.folder import START
from simcse_train.runs.manifest import damage, write_manifest
from simcse_train.search.bank import Bank
from simcse_train.search.embeddings import Autocast, cached_array, cached_embeddings, encoder_fingerprint
from simcse_train.search.index import mutual_neighbours

MOMENTUM = "momentum/"  # before the names of the momentum encoder's tensors in a checkpoint
NEEDS_START = {"start", "smoothed", "members"}


class Teachers:
    """Gives the rows of each batch what the objective needs to know of them; holds an encoder only where one is needed."""

    def __init__(
        self, run: Path, config: TrainConfig, encoder: Encoder, batches: Batches, text: str, objective: Objective,
        autocast: Autocast,
    ) -> None:
        """Load the start from the run folder, and embed what has to be known before the first step.

        `text` is the fingerprint of the sentences of `batches`.
        """
        self.config, self.objective, self.autocast = config, objective, autocast
        self.bank: Bank | None = None
        self.similar_above: float | None = None
        self.momentum: Encoder | None = None
        if "momentum" in objective.needs:
            # The tokenizer is shared: a copy would take longer than that of the weights.
            self.momentum = copy.deepcopy(encoder, {id(encoder.tokenizer): encoder.tokenizer}).eval().requires_grad_(False)
        if not needs_start(config, objective):
            return
        start = load_start(run, config).to(encoder.device)
        named = f"{text} {config.max_length}"
        trained = batches.trained if batches.text is not None else np.arange(len(batches))
        if "members" in objective.needs:
            batches.members = _members(start, batches, trained, named, config, autocast)
        if needs_bank(config, objective):
            self.bank = Bank(start, batches.tokens, trained, named, config.precision, autocast)
            if config.mask_similar is not None:
                self.similar_above = self.bank.quantile(config.mask_similar)

    def rows(self, batch: Batch) -> Rows:
        """Return what the objective may know of the rows of a batch."""
        device = batch.texts.device
        start = smoothed = members = momentum = None
        if self.bank is not None and (not batch.paired or self.similar_above is not None):
            start = self.bank.start(batch.sources)
            if "smoothed" in self.objective.needs and not batch.paired:
                smoothed = self.bank.smoothed(batch.sources, start, int(objective_setting(self.config, "neighbours")))
        if not batch.paired:
            if batch.members is not None:
                members = torch.from_numpy(batch.members.astype(np.int64)).to(device)
            if self.momentum is not None:
                momentum = self._momentum_rows(batch)
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
    def _momentum_rows(self, batch: Batch) -> Tensor:
        """Return the embeddings (rows, hidden) of a batch under the momentum encoder, without dropout, of length 1."""
        assert self.momentum is not None
        found = []
        for tokens, lengths in batch.parts(self.config.micro_batch_size):
            with self.autocast():
                found.append(normalize(self.momentum(tokens, lengths).float()))
        return torch.cat(found)


def needs_bank(config: TrainConfig, objective: Objective) -> bool:
    """Return whether the start's embeddings of each batch are needed."""
    return config.mask_similar is not None or bool(objective.needs & {"start", "smoothed"})


def needs_start(config: TrainConfig, objective: Objective) -> bool:
    """Return whether the run needs the encoder that it started from."""
    return config.mask_similar is not None or bool(objective.needs & NEEDS_START)


def keep_start(run: Path, encoder: Encoder) -> None:
    """Copy the encoder into the run folder, so that a resumed run has it whatever becomes of the model's own files."""

    def write(folder: Path) -> None:
        save_encoder(encoder, folder)
        write_manifest(folder)

    write_folder(run / START, write)


def load_start(run: Path, config: TrainConfig) -> Encoder:
    """Return the encoder that a run started from, frozen; raises `InputError` if its copy in the run folder is damaged."""
    if reason := damage(run / START, "config.json"):
        raise InputError(
            f"{run / START}, the encoder that the run started from, cannot be used: {reason}. --objective {config.objective} "
            "needs it. Restore that folder, or start a new run."
        )
    return load_encoder(run / START, pooling=config.pooling).eval().requires_grad_(False)
