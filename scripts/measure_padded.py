"""Print how fast the padded families train with and without what is done for them: DeBERTa v3 and MPNet.

    python -m scripts.measure_padded --data corpus.txt --threads 1

Both encoders have random weights, 6 layers of 384 and the bundled encoder's tokenizer; DeBERTa has the 512 relative
positions of v3. A step is forward and backward pass of 64 sentences of the text in two views. For DeBERTa, the relative
positions are cut to those of the batch or not; for MPNet, rows of like length share a batch, or all do. The variants
take turns on the same batches, and the processor time of each is printed, the median over the batches.
"""

from __future__ import annotations

import platform
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Annotated, Any

import torch
import typer
from torch import Tensor
from transformers import AutoModel, AutoTokenizer, DebertaV2Config, MPNetConfig, PretrainedConfig
from transformers.models.deberta_v2.modeling_deberta_v2 import DebertaV2Encoder, DisentangledSelfAttention

from simcse_train import load_encoder
from simcse_train.cli.app import import_quietly
from simcse_train.data.sample import sample_text
from simcse_train.encoders import padding
from simcse_train.encoders.encoder import Encoder
from simcse_train.encoders.loading import STARTER_FOLDER
from simcse_train.encoders.packing import pack
from simcse_train.encoders.relative import CutEncoder, cut_relative_embeddings
from simcse_train.objectives.ntxent import NTXent
from simcse_train.objectives.objective import Rows

BATCH, STEPS = 64, 8
SIZES: dict[str, Any] = {
    "hidden_size": 384,
    "num_hidden_layers": 6,
    "num_attention_heads": 12,
    "intermediate_size": 1536,
}
DEBERTA_V3: dict[str, Any] = {
    "relative_attention": True,
    "position_buckets": 256,
    "norm_rel_ebd": "layer_norm",
    "share_att_key": True,
    "pos_att_type": ["p2c", "c2p"],
    "max_relative_positions": -1,
    "position_biased_input": False,
    "type_vocab_size": 0,
}


def make_encoder(config: PretrainedConfig) -> Encoder:
    """Return an encoder with random weights and the bundled encoder's tokenizer."""
    with tempfile.TemporaryDirectory() as folder:
        torch.manual_seed(0)
        AutoModel.from_config(config).save_pretrained(folder)
        AutoTokenizer.from_pretrained(STARTER_FOLDER).save_pretrained(folder)
        return load_encoder(folder, dropout=0.1).train()


def cut(encoder: Encoder, *, on: bool) -> None:
    """Cut the relative positions of a DeBERTa, or compute with all of them as transformers does."""
    if on:
        cut_relative_embeddings(encoder.model)
        return
    for module in encoder.model.modules():
        if isinstance(module, CutEncoder):
            module.__class__ = DebertaV2Encoder  # type: ignore[assignment]
        if isinstance(module, DisentangledSelfAttention):
            module.pos_ebd_size = encoder.model.config.position_buckets


def group(_: Encoder, *, on: bool) -> None:
    """Let rows of like length share a padded batch, or all rows one."""
    padding.GROUPS = 4 if on else 1


def seconds_of_step(encoder: Encoder, batch: tuple[Tensor, Tensor]) -> float:
    """Return the processor time of a forward and backward pass."""
    rows = Rows(2, torch.arange(BATCH).repeat_interleave(2))
    began = time.process_time()
    NTXent(0.05).loss(encoder(*batch), rows).backward()
    return time.process_time() - began


def compare(name: str, encoder: Encoder, batches: list[tuple[Tensor, Tensor]], switch: Callable[..., None]) -> None:
    """Print the medians with and without."""
    found: dict[bool, list[float]] = {True: [], False: []}
    for batch in [batches[0], *batches]:  # the first time does not count
        for on in (True, False):
            switch(encoder, on=on)
            found[on].append(seconds_of_step(encoder, batch))
    with_it, without = (median(found[on][1:]) for on in (True, False))
    typer.echo(f"{name}: {without:.2f} s a step without, {with_it:.2f} s with, {without / with_it:.2f} times as fast")


def main(
    data: Annotated[Path, typer.Option(help="Text, a sentence per line.")],
    threads: Annotated[int, typer.Option(help="Threads of torch.")] = 1,
    max_length: Annotated[int, typer.Option(help="Tokens after which a sentence is cut.")] = 32,
) -> None:
    """Measure both encoders."""
    import_quietly()
    torch.set_num_threads(threads)
    typer.echo(f"{platform.machine()}, {threads} threads, torch {torch.__version__}, float32, max length {max_length}")
    sentences = sample_text([str(data)], None, BATCH * STEPS)[1]
    vocabulary = len(AutoTokenizer.from_pretrained(STARTER_FOLDER))
    deberta = DebertaV2Config(vocab_size=vocabulary, **SIZES, **DEBERTA_V3)
    mpnet = MPNetConfig(vocab_size=vocabulary, pad_token_id=0, **SIZES)
    for name, config, switch in (("DeBERTa v3, relative positions cut", deberta, cut), ("MPNet, groups", mpnet, group)):
        encoder = make_encoder(config)
        rows = encoder.tokenizer.tokenize(sentences, max_length)
        batches = [pack([row for row in rows[i : i + BATCH] for _ in (0, 1)]) for i in range(0, len(rows), BATCH)]
        compare(name, encoder, batches, switch)


if __name__ == "__main__":
    typer.run(main)
