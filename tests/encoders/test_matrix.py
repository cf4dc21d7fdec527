"""Every encoder-only text family of the pinned transformers is used rightly, or refused in one paragraph."""

from __future__ import annotations

import shutil
import warnings
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from torch import Tensor
from transformers import AutoModel, AutoTokenizer

from simcse_train.config import make_config
from simcse_train.encoders.encoder import Encoder
from simcse_train.encoders.loading import load_encoder
from simcse_train.encoders.packing import pack
from simcse_train.encoders.pooling import pool
from simcse_train.encoders.saving import save_encoder
from simcse_train.encoders.weights import ENCODERS
from simcse_train.errors import InputError
from simcse_train.objectives.ntxent import NTXent
from simcse_train.objectives.objective import Rows
from simcse_train.randomness import seeded
from simcse_train.runs.folder import checkpoints
from simcse_train.training.optimizer import keep_embedding_gradient
from simcse_train.training.start import resume, train
from tests.conftest import EXAMPLES
from tests.encoders.matrix import (
    COMPUTED,
    EQUAL,
    EXPECTED,
    FLOAT32_ONLY,
    LEFT_TO_RIGHT,
    NOT_TRAINED,
    PACKED,
    REFUSED,
    WITHOUT_FIRST_TOKEN,
    make_member,
)

LINES = (EXAMPLES / "sentences.txt").read_text(encoding="utf-8").splitlines()
TEXTS = {
    8: LINES[:6],
    70: [" ".join(LINES[:20]), LINES[3]],
    600: [" ".join(LINES[:200]), LINES[5], " ".join(LINES[90:100])],
}


@pytest.fixture(scope="module", params=COMPUTED)
def member(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_member(request.param, tmp_path_factory.mktemp("matrix") / request.param)


@pytest.fixture(scope="module")
def encoder(member: Path) -> Encoder:
    return load_encoder(member)


def plain_states(folder: Path, texts: Sequence[str], length: int, *, alone: bool) -> Tensor:
    """Return the states (total, hidden) that transformers alone gives, of a padded batch or of single sentences."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.unk_token
    kind = transformers.AutoConfig.from_pretrained(folder).model_type
    model = (getattr(transformers, ENCODERS[kind]) if kind in ENCODERS else AutoModel).from_pretrained(folder)
    if kind == "big_bird":
        model.set_attention_type("original_full")
    found = []
    with torch.inference_mode():
        for batch in [[text] for text in texts] if alone else [list(texts)]:
            given = tokenizer(
                batch, padding=True, truncation=True, max_length=length, return_tensors="pt", padding_side="right",
                return_attention_mask=True,
            )  # fmt: skip
            mask = given["attention_mask"].bool()
            if kind == "fnet":
                del given["attention_mask"]  # the model takes none
            found.append(model.eval()(**given).last_hidden_state[mask])
    return torch.cat(found)


def test_it_is_computed_as_stated(encoder: Encoder, member: Path) -> None:
    how = PACKED if encoder.packed else EQUAL if encoder.equal_lengths else "padded"
    assert how == EXPECTED[member.name]
    kinds = {**dict.fromkeys(WITHOUT_FIRST_TOKEN, "mean"), **dict.fromkeys(LEFT_TO_RIGHT, "last")}
    assert encoder.pooling == kinds.get(member.name, "cls")
    assert bool(encoder.float32_only) == (member.name in FLOAT32_ONLY)


@pytest.mark.parametrize("length", TEXTS)
def test_its_states_are_those_of_transformers_alone(encoder: Encoder, member: Path, length: int) -> None:
    tokens, lengths = pack(encoder.tokenizer.tokenize(TEXTS[length], length))
    assert int(lengths.max()) == length
    with torch.inference_mode():
        found = encoder.states(tokens, lengths)
    expected = plain_states(member, TEXTS[length], length, alone=EXPECTED[member.name] == EQUAL)
    scale = float(expected.abs().max())
    assert torch.allclose(found, expected, atol=1e-4 * max(1.0, scale), rtol=1e-3)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_two_steps_lower_the_loss_and_give_every_used_weight_a_finite_gradient(
    member: Path, dtype: torch.dtype
) -> None:
    if member.name in NOT_TRAINED or (dtype == torch.bfloat16 and member.name in FLOAT32_ONLY):
        return
    encoder = load_encoder(member, dropout=0.1).train()
    keep_embedding_gradient(encoder.model)
    tokens, lengths = pack([row for row in encoder.tokenizer.tokenize(LINES[:8], 16) for _ in range(2)])
    rows = Rows(2, torch.arange(8).repeat_interleave(2))
    optimizer = torch.optim.SGD(encoder.parameters(), lr=5e-3)
    losses = []
    for _ in range(3):
        with seeded(1), torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
            loss = NTXent(0.5).loss(encoder(tokens, lengths), rows)
        optimizer.zero_grad(set_to_none=False)
        loss.backward()
        assert all(p.grad is None or p.grad.isfinite().all() for p in encoder.parameters())
        norm = torch.nn.utils.clip_grad_norm_(encoder.parameters(), 1.0)
        assert norm > 0
        optimizer.step()
        losses.append(loss.item())
    assert min(losses[1:]) < losses[0]


def test_what_is_saved_gives_the_same_embeddings_in_sentence_transformers(
    encoder: Encoder, member: Path, tmp_path: Path
) -> None:
    sentence_transformers = pytest.importorskip("sentence_transformers")
    save_encoder(encoder, tmp_path / "saved")
    texts = [*TEXTS[8], *TEXTS[600], "Why?"]
    ours = encoder.encode(texts)
    again = load_encoder(tmp_path / "saved")
    assert np.array_equal(again.encode(texts), ours)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = sentence_transformers.SentenceTransformer(str(tmp_path / "saved"), device="cpu")
        size = 1 if encoder.equal_lengths else 32
        theirs = model.encode(texts, normalize_embeddings=True, batch_size=size)
    assert np.allclose(ours, theirs, atol=1e-4)


@pytest.mark.parametrize("family", REFUSED)
def test_a_family_that_cannot_be_used_is_refused_in_one_paragraph(family: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=EXPECTED[family]) as error:
        load_encoder(make_member(family, tmp_path / family))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("pooling", ["cls", "max", "mean", "mean_sqrt_len", "weightedmean", "last", "cls+mean"])
def test_pooling_is_that_of_each_sentence_alone(pooling: str) -> None:
    states, lengths = torch.randn(12, 4), torch.tensor([3, 1, 8])
    together = pool(states, lengths, pooling)
    for i, part in enumerate(states.split([3, 1, 8])):
        assert torch.allclose(pool(part, lengths[i : i + 1], pooling)[0], together[i], atol=1e-6)


TRAINED_EACH_TIME = ("modernbert", "deberta-v2", "convbert", "t5", "gpt2")


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize(
    "family",
    [name if name in TRAINED_EACH_TIME else pytest.param(name, marks=pytest.mark.slow) for name in COMPUTED],
)
def test_a_run_is_exported_and_resumes_to_the_same_bits(
    family: str, precision: str, text: Path, tmp_path: Path
) -> None:
    if precision == "bf16" and (family in FLOAT32_ONLY or family in TRAINED_EACH_TIME[1:]):
        return
    model = make_member(family, tmp_path / family)
    settings = {"data": str(text), "model": str(model), "precision": precision, "device": "cpu", "dropout": 0.1}
    settings |= {"batch_size": 8, "max_length": 12, "max_steps": 2, "save_every": 1, "output": str(tmp_path / "run")}
    if family in NOT_TRAINED:
        with pytest.raises(InputError, match="no seed decides"):
            train(make_config(settings))
        return
    run = train(make_config(settings)).folder
    whole = (run / "encoder" / "model.safetensors").read_bytes()
    again = tmp_path / "again"
    shutil.copytree(run, again)
    shutil.rmtree(again / "encoder")
    shutil.rmtree(checkpoints(again)[-1])
    resumed = resume(again).folder
    assert (resumed / "encoder" / "model.safetensors").read_bytes() == whole
