"""The program against a plain PyTorch loop of the method, bit for bit."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, normalize
from torch.nn.utils import clip_grad_norm_
from torch.nn.utils.rnn import pad_sequence
from transformers import BertModel, BertTokenizer, PreTrainedModel

from simcse_train.config import make_config
from simcse_train.encoders import padding
from simcse_train.encoders.dropout import replace_dropout
from simcse_train.encoders.loading import load_encoder
from simcse_train.randomness import seeded
from simcse_train.runs.folder import checkpoint_path
from simcse_train.runs.metrics import read_metrics
from simcse_train.training.optimizer import keep_embedding_gradient
from simcse_train.training.start import train
from tests.training.test_loop import bits

SEED, BATCH, LENGTH, STEPS, WARMUP = 5, 8, 16, 16, 4
RATE, DECAY, CLIP, TEMPERATURE = 1e-3, 0.1, 0.5, 0.1

# Embeds rows of token ids: (rows of ids) -> (rows, hidden).
Embed = Callable[[list[list[int]]], Tensor]


def ntxent(embeddings: Tensor) -> Tensor:
    """Chen et al. 2020, equation 1, for `[a, a', b, b', ...]`."""
    units = normalize(embeddings)
    cosines = units @ units.T
    itself = torch.eye(len(cosines), dtype=torch.bool)
    labels = torch.tensor([i + 1 if i % 2 == 0 else i - 1 for i in range(len(cosines))])
    return cross_entropy((cosines / TEMPERATURE).masked_fill(itself, float("-inf")), labels)


def infonce(embeddings: Tensor) -> Tensor:
    """Gao, Yao & Chen 2021, equation 4."""
    units = normalize(embeddings)
    second = units[torch.arange(1, len(units), 2)]  # a copy: products with a view of every other row have other bits
    return cross_entropy(units[0::2] @ second.T / TEMPERATURE, torch.arange(len(units) // 2))


@pytest.fixture
def sentences(tmp_path: Path) -> Path:
    """108 sentences of 4 to 14 tokens."""
    subjects = ("a man", "the woman", "the big dog", "a small red cat", "cat", "the man in a blue park")
    places = ("", " in the park", " on the hill", " guitar", " , a man , the dog .", " in a small park on a big hill !")
    path = tmp_path / "sentences.txt"
    path.write_text("".join(f"{s} {v}{p}\n" for s in subjects for v in ("runs", "plays", "sings") for p in places))
    return path


def sentences_of(text: Path, model: Path) -> list[list[int]]:
    """Return the token ids of the distinct lines that are trained on: without those held out, evenly spaced."""
    lines = list(dict.fromkeys(line.strip() for line in text.read_text().splitlines() if line.strip()))
    rows = BertTokenizer.from_pretrained(model)(lines, truncation=True, max_length=LENGTH)["input_ids"]
    assert len({len(row) for row in rows}) > 5
    assert len({tuple(row) for row in rows}) == len(rows)  # else the loss would have to mask those that are equal
    held_out = set(np.linspace(0, len(rows) - 1, len(rows) // 10, dtype=int).tolist())
    return [row for i, row in enumerate(rows) if i not in held_out]


def simcse(
    sentences: list[list[int]], embed: Embed, module: nn.Module, loss_of: Callable[[Tensor], Tensor]
) -> tuple[list[float], list[float]]:
    """Train for `STEPS` steps; return the losses and the learning rates."""
    per_epoch = len(sentences) // BATCH + (len(sentences) % BATCH > 1)
    matrices = [p for p in module.parameters() if p.ndim > 1]
    vectors = [p for p in module.parameters() if p.ndim == 1]
    groups = [{"params": matrices, "weight_decay": DECAY}, {"params": vectors, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=RATE, fused=True)
    rates = [RATE * step / WARMUP for step in range(1, WARMUP + 1)]  # rises linearly to the peak, then falls to 0
    rates += [RATE * (STEPS - step) / (STEPS - WARMUP) for step in range(WARMUP, STEPS)]
    losses = []
    module.train()
    for step in range(STEPS):
        epoch, position = divmod(step, per_epoch)
        order = np.random.default_rng([SEED, epoch]).permutation(len(sentences))
        batch = [sentences[i] for i in order[position * BATCH : (position + 1) * BATCH]]
        with seeded(SEED, step, 0):
            embeddings = embed([row for row in batch for _ in range(2)])
        loss = loss_of(embeddings)
        optimizer.zero_grad(set_to_none=False)
        loss.backward()
        assert clip_grad_norm_(module.parameters(), CLIP) > CLIP  # clipping is active in every step
        for group in optimizer.param_groups:
            group["lr"] = rates[step]
        optimizer.step()
        losses.append(loss.item())
    return losses, rates


def with_head(module: nn.Module, hidden: int, spread: float) -> tuple[nn.Module, nn.Module]:
    """Return a new linear layer, drawn as the program draws it, and both modules as one."""
    with seeded(SEED):
        layer = nn.Linear(hidden, hidden)
        nn.init.normal_(layer.weight, std=spread)
        nn.init.zeros_(layer.bias)
    return layer, nn.ModuleList([module, layer])


@pytest.mark.parametrize("packed", [True, False], ids=["packed", "padded"])
@pytest.mark.parametrize("objective", [ntxent, infonce])
@pytest.mark.parametrize("pooling", ["cls", "mean"])
def test_the_program_trains_to_the_bits_of_a_plain_loop(
    pooling: str,
    objective: Callable[[Tensor], Tensor],
    packed: bool,
    sentences: Path,
    tiny: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if packed:  # the same sums in another order have other bits, so the packed forward pass is the program's own
        encoder = load_encoder(tiny, pooling=pooling)
        encoder.model.pooler = None  # type: ignore[assignment]
        model: PreTrainedModel = encoder.model

        def pooled(rows: list[list[int]]) -> Tensor:
            tokens = torch.tensor([token for row in rows for token in row])
            return encoder.embed(tokens, torch.tensor([len(row) for row in rows]))

    else:  # nothing of the program but its dropout noise
        monkeypatch.setattr(padding, "WORTHWHILE", 1.0)  # one padded batch, not several of like length
        model = bert = BertModel.from_pretrained(tiny, add_pooling_layer=False)
        replace_dropout(model)

        def pooled(rows: list[list[int]]) -> Tensor:
            ids = pad_sequence([torch.tensor(row) for row in rows], batch_first=True)  # (rows, longest)
            mask = (torch.arange(ids.shape[1]) < torch.tensor([[len(row)] for row in rows])).long()
            states: Tensor = bert(input_ids=ids, attention_mask=mask).last_hidden_state  # (rows, longest, hidden)
            if pooling == "cls":
                return states[:, 0]
            return torch.stack([state[: len(row)].mean(0) for state, row in zip(states, rows, strict=True)])

    embed: Embed = pooled
    module: nn.Module = model
    if pooling == "cls":
        layer, module = with_head(model, 32, spread=0.3)

        def embed(rows: list[list[int]]) -> Tensor:
            return torch.tanh(layer(pooled(rows)))

    keep_embedding_gradient(model)  # sums a word's gradients in another order, which changes their bits
    losses, rates = simcse(sentences_of(sentences, tiny), embed, module, objective)
    config = {
        "data": str(sentences),
        "model": str(tiny),
        "output": str(tmp_path / "run"),
        "pooling": pooling,
        "objective": objective.__name__,
        "precision": "fp32",
        "device": "cpu",
        "seed": SEED,
        "batch_size": BATCH,
        "max_length": LENGTH,
        "max_steps": STEPS,
        "warmup_ratio": WARMUP / STEPS,
        "learning_rate": RATE,
        "weight_decay": DECAY,
        "max_grad_norm": CLIP,
        "temperature": TEMPERATURE,
        "log_every": 1,
        "eval_every": 5,  # measuring on the way must change nothing
    }
    run = train(make_config(config), load_encoder(tiny, pooling=pooling, packed=packed)).folder
    logged = [line for line in read_metrics(run) if "loss" in line]
    assert [line["loss"] for line in logged] == losses
    assert [line["learning_rate"] for line in logged] == rates
    found = {k: v for k, v in bits(checkpoint_path(run, STEPS) / "encoder").items() if "pooler" not in k}
    expected = {name: value.detach().numpy().tobytes() for name, value in model.state_dict().items()}
    assert found.keys() == expected.keys()
    assert [name for name in found if found[name] != expected[name]] == []
