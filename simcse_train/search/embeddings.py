"""The embeddings of numbered sentences, computed once for an encoder and a text and kept in the user's cache."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import normalize
from tqdm.auto import tqdm

from simcse_train import distributed
from simcse_train.encoders.encoder import Encoder, mode
from simcse_train.encoders.packing import moved, pack
from simcse_train.errors import InputError
from simcse_train.search.cached_arrays import cached_array, remember, remembered

BATCH = 64  # sentences embedded at once
CHUNK = 4096  # sentences read, sorted by length, and written at once

Autocast = Callable[[], AbstractContextManager[None]]
Tokens = Callable[[NDArray[np.int64]], list[list[int]]]  # numbers of sentences -> their token ids


@torch.no_grad()
def embed_rows(encoder: Encoder, rows: Sequence[Sequence[int]], autocast: Autocast = nullcontext) -> Tensor:
    """Return the embeddings (rows, hidden) of token ids, float32, of length 1, without dropout and without the head.

    They are computed in the order of length, so that padded batches have little padding.
    """
    order = sorted(range(len(rows)), key=lambda row: -len(rows[row]))
    found = torch.zeros(len(rows), encoder.hidden_size, device=encoder.device)
    with mode(encoder, training=False):
        for start in range(0, len(order), BATCH):
            chosen = order[start : start + BATCH]
            with autocast():
                embeddings = encoder.embed(*pack([rows[row] for row in chosen], encoder.device))
            found[moved(torch.tensor(chosen), encoder.device)] = normalize(embeddings.float())
    return found


def require_finite(embeddings: NDArray[np.float32], text: Callable[[int], str]) -> None:
    """Raise `InputError` if embeddings (sentences, hidden) are not finite; `text` returns the sentence of a row."""
    wrong = np.flatnonzero(~np.isfinite(embeddings).all(axis=1))
    if len(wrong):
        raise InputError(
            f"The encoder gives no finite embedding for {len(wrong):,} of {len(embeddings):,} sentences, the first of "
            f"which is {text(int(wrong[0]))[:80]!r}. Its weights are damaged or too large: download or export it "
            "again, or choose another."
        )


def embed_rows_together(encoder: Encoder, rows: Sequence[Sequence[int]], autocast: Autocast = nullcontext) -> Tensor:
    """Return what `embed_rows` does; every process is given the same rows and computes its share of them."""
    first, end = distributed.shares(len(rows))[distributed.rank()]
    return distributed.gather_shares(embed_rows(encoder, rows[first:end], autocast), len(rows))


def known_embeddings(encoder: Encoder, rows: Sequence[Sequence[int]]) -> Tensor:
    """Return what `embed_rows_together` does, from the cache if an earlier run had the same rows and encoder.

    Raises `InputError` if an embedding is not finite.
    """
    how = [distributed.world_size(), encoder.device.type, encoder.batches]  # it may change the last bits
    key = [encoder_fingerprint(encoder), hashlib.sha256(json.dumps(rows).encode()).hexdigest(), *how]
    shape = len(rows), encoder.hidden_size
    held = remembered("embedded", key, shape, np.float32) if distributed.is_main() else None
    if distributed.from_main(lambda: held is not None):
        mine = np.zeros((0, encoder.hidden_size), np.float32) if held is None else held
        counts = [len(rows), *[0] * (distributed.world_size() - 1)]
        return distributed.gather_rows(torch.from_numpy(mine).to(encoder.device), counts)
    found = embed_rows_together(encoder, rows)
    values: NDArray[np.float32] = found.cpu().numpy()
    require_finite(values, lambda row: encoder.tokenizer.text(rows[row]))
    if distributed.is_main():
        remember("embedded", key, values)
    return found


def encode_together(
    encoder: Encoder,
    sentences: Sequence[str],
    *,
    batch_size: int = BATCH,
    normalized: bool = True,
    show_progress: bool = False,
) -> NDArray[np.float32]:
    """Return what `encoder.encode` does; every process is given the same sentences and encodes its share of them."""
    first, end = distributed.shares(len(sentences))[distributed.rank()]
    mine = encoder.encode(
        sentences[first:end], batch_size=batch_size, normalized=normalized, show_progress=show_progress
    )
    found: NDArray[np.float32] = distributed.gather_shares(torch.from_numpy(mine), len(sentences)).numpy()
    return found


def cached_embeddings(
    encoder: Encoder,
    tokens: Tokens,
    numbers: NDArray[np.int64],
    text: str,
    *,
    precision: str = "fp32",
    autocast: Autocast = nullcontext,
) -> NDArray[np.float16]:
    """Return the embeddings (numbers, hidden) of the sentences with these numbers, memory-mapped, of length 1.

    `text` names the text and how it is tokenised (its fingerprint, the maximum length); `precision` names the
    arithmetic of `autocast`. They are computed if the cache does not have them for this encoder and text, in memory
    that does not grow with the text. Raises `InputError` if the cache cannot be written, or an embedding is not finite.
    """

    def embed(chosen: NDArray[np.int64]) -> NDArray[np.float32]:
        rows = tokens(chosen)
        found: NDArray[np.float32] = embed_rows(encoder, rows, autocast).cpu().numpy()
        require_finite(found, lambda row: encoder.tokenizer.text(rows[row]))
        return found

    def write(out: NDArray[np.float16]) -> None:
        silent = None if distributed.is_main() else True
        with tqdm(total=len(numbers), desc="embed", unit="sentence", leave=False, disable=silent) as bar:
            for start in range(0, len(numbers), CHUNK):
                chosen = numbers[start : start + CHUNK]
                out[start : start + CHUNK] = embed(chosen)
                bar.update(len(chosen))

    key = [encoder_fingerprint(encoder), encoder.tokenizer.fingerprint(), text, _digest(numbers), precision]
    return cached_array("embeddings", key, (len(numbers), encoder.hidden_size), np.float16, write)


def encoder_fingerprint(encoder: Encoder) -> str:
    """Return a SHA-256 of all that decides what an encoder makes of tokens.

    That is its configuration, pooling, weights, and the modules after the pooling.
    """
    modules = [(type(module).__name__, getattr(module, "settings", None)) for module in encoder.modules_after]
    found = hashlib.sha256(json.dumps([encoder.pooling, modules], default=str).encode())
    settings = {k: v for k, v in encoder.model.config.to_dict().items() if not k.startswith("_") and "dropout" not in k}
    found.update(json.dumps(settings, sort_keys=True, default=str).encode())
    for part in (encoder.model, encoder.modules_after):
        for name, weights in sorted(part.state_dict().items()):
            found.update(name.encode())
            found.update(weights.detach().cpu().flatten().view(torch.uint8).numpy().tobytes())
    return found.hexdigest()


def _digest(numbers: NDArray[np.int64]) -> str:
    return hashlib.sha256(np.ascontiguousarray(numbers).tobytes()).hexdigest()
