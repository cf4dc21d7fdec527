"""Train with sentence-transformers. `turns` runs this in a process of its own and times the optimiser's steps.

This is the SimCSE recipe of its documentation: `MultipleNegativesRankingLoss` at scale 20 on pairs of a sentence and
itself. Scaled-dot-product attention and the fused AdamW are on by default. Two switches need code:

- Batches of similar length need a batch sampler. The arguments accept `train_sampling_strategy="group_by_length"`,
  but the data loader does not use it.
- One forward pass for both views needs a subclass of the loss that calls `embed_columns(separate_first=False)`.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from scripts.benchmark.contenders import Contender, Job


def train_peer(contender: Contender, job: Job, folder: Path) -> None:
    """Train with sentence-transformers and the switches of the contender."""
    from datasets import Dataset
    from sentence_transformers import (
        SentenceTransformer,
        SentenceTransformerTrainer,
        SentenceTransformerTrainingArguments,
    )
    from sentence_transformers.base.losses.merged_forward import embed_columns
    from sentence_transformers.base.sampler import BatchSamplers, DefaultBatchSampler
    from sentence_transformers.sentence_transformer.losses import MultipleNegativesRankingLoss
    from transformers import PrinterCallback

    class OnePass(MultipleNegativesRankingLoss):
        def forward(self, sentence_features: Any, labels: torch.Tensor) -> torch.Tensor:
            embeddings = embed_columns(self.model, sentence_features, separate_first=False)
            return self.compute_loss_from_embeddings(embeddings, labels)

    class Bucketed(DefaultBatchSampler):
        def __iter__(self) -> Iterator[list[int]]:
            return iter(bucketed(lengths, self.batch_size, job.seed))

    sentences = Path(job.text).read_text(encoding="utf-8").splitlines()
    options = {"attn_implementation": "flash_attention_2"} if contender.flash else {}
    model = SentenceTransformer(job.model, device=job.device, model_kwargs=options)
    lengths = [len(row) for row in model.tokenizer(sentences, truncation=True, max_length=job.max_length)["input_ids"]]
    arguments = SentenceTransformerTrainingArguments(
        output_dir=str(folder),
        max_steps=job.warmup + job.steps,
        per_device_train_batch_size=job.batch_size,
        learning_rate=3e-5,
        seed=job.seed,
        use_cpu=job.device == "cpu",
        bf16=contender.precision == "bf16",
        fp16=contender.precision == "fp16",
        torch_compile=contender.compiled,
        dataloader_num_workers=contender.workers,
        dataloader_persistent_workers=contender.workers > 0,
        dataloader_pin_memory=job.device == "cuda",
        save_strategy="no",
        logging_strategy="no",
        report_to="none",
        disable_tqdm=True,
        batch_sampler=Bucketed if contender.sorted else BatchSamplers.BATCH_SAMPLER,
    )
    loss = (OnePass if contender.one_pass else MultipleNegativesRankingLoss)(model, scale=20.0)
    dataset = Dataset.from_dict({"anchor": sentences, "positive": sentences})
    trainer = SentenceTransformerTrainer(model=model, args=arguments, train_dataset=dataset, loss=loss)
    trainer.remove_callback(PrinterCallback)
    trainer.train()


def bucketed(lengths: Sequence[int], batch_size: int, seed: int) -> list[list[int]]:
    """Return batches of sentences of similar length in random order.

    The sentences are sorted within random buckets of 50 batches, as `LengthGroupedSampler` of transformers does it.
    """
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(lengths), generator=generator).tolist()
    size = 50 * batch_size
    buckets = [sorted(order[start : start + size], key=lambda i: lengths[i]) for start in range(0, len(order), size)]
    grouped = list(itertools.chain(*buckets))
    batches = [grouped[start : start + batch_size] for start in range(0, len(grouped), batch_size)]
    return [batches[i] for i in torch.randperm(len(batches), generator=generator).tolist()]
