from __future__ import annotations

import json
import logging
import pickle
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers.models import Unigram
from torch import Tensor
from transformers import BertConfig, BertModel, BertTokenizer, ByT5Tokenizer

from simcse_train.encoders.encoder import Encoder, dropout_settings
from simcse_train.encoders.head import projection_head
from simcse_train.encoders.loading import load_encoder
from simcse_train.encoders.packing import pack
from simcse_train.encoders.probing import is_deterministic
from simcse_train.encoders.saving import save_encoder
from simcse_train.encoders.sources import model_name
from simcse_train.encoders.tokenizer import SentenceTokenizer
from simcse_train.errors import InputError
from simcse_train.objectives.ntxent import NTXent
from simcse_train.objectives.objective import Rows
from simcse_train.randomness import seeded
from tests.conftest import make_bert
from tests.encoders.families import FAMILIES, make_family

SENTENCES = ["a man plays the guitar.", "cat", "the big red dog runs in the park on the blue hill!", "a woman sings"]


@pytest.fixture(scope="module", params=FAMILIES)
def family(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_family(request.param, tmp_path_factory.mktemp(request.param))


def gradients(encoder: Encoder, states: Tensor) -> dict[str, Tensor]:
    encoder.zero_grad()
    weights = torch.linspace(-1, 1, states.numel()).reshape(states.shape)
    (states * weights).sum().backward()
    return {name: p.grad.clone() for name, p in encoder.named_parameters() if p.grad is not None}


def test_packed_states_and_gradients_are_those_of_the_padded_batch(family: Path) -> None:
    encoder = load_encoder(family)
    if family.name.startswith("mpnet"):
        assert not encoder.packed  # its attention is its own: the padded path is taken
        return
    assert encoder.packed
    tokens, lengths = pack(encoder.tokenizer.tokenize(SENTENCES, 32))
    packed = encoder.states(tokens, lengths)
    packed_gradients = gradients(encoder, packed)
    encoder.model.set_attn_implementation("eager")
    padded = encoder.padded_states(tokens, lengths)
    assert torch.allclose(packed, padded, atol=1e-5)
    padded_gradients = gradients(encoder, padded)
    assert packed_gradients.keys() == padded_gradients.keys()
    for name, gradient in packed_gradients.items():
        assert torch.allclose(gradient, padded_gradients[name], atol=1e-4, rtol=1e-4), name


def test_the_last_layer_computes_cls_alone_with_the_embeddings_and_gradients_of_the_padded_batch(family: Path) -> None:
    encoder = load_encoder(family, pooling="cls")
    # MPNet is padded, and ALBERT's layers are one module: these compute their last layer for all tokens.
    assert encoder.first_only == (not family.name.startswith(("mpnet", "albert")))
    tokens, lengths = pack(encoder.tokenizer.tokenize(SENTENCES, 32))
    shapes: list[torch.Size] = []
    norms = [m for m in encoder.model.modules() if isinstance(m, torch.nn.LayerNorm)]
    handle = norms[-1].register_forward_hook(lambda _, args, output: shapes.append(output.shape))
    found = encoder.embed(tokens, lengths)
    handle.remove()
    if encoder.first_only:
        assert shapes == [(1, len(SENTENCES), 32)]
    found_gradients = gradients(encoder, found)
    encoder.model.set_attn_implementation("eager")
    expected = encoder.padded_states(tokens, lengths)[lengths.cumsum(0) - lengths]
    assert torch.allclose(found, expected, atol=1e-5)
    expected_gradients = gradients(encoder, expected)
    assert found_gradients.keys() == expected_gradients.keys()
    for name, gradient in found_gradients.items():
        assert torch.allclose(gradient, expected_gradients[name], atol=1e-4, rtol=1e-4), name


def test_dropout_gives_the_loss_the_same_mean_and_spread_packed_as_padded(family: Path) -> None:
    encoder = load_encoder(family, pooling="cls", dropout=0.3).train()
    if not encoder.packed:
        return
    tokens, lengths = pack(encoder.tokenizer.tokenize([s for s in SENTENCES for _ in range(2)], 32))
    first = lengths.cumsum(0) - lengths

    def losses(embed: Callable[[], Tensor]) -> Tensor:
        found = []
        for seed in range(100):
            with torch.no_grad(), seeded(seed):
                found.append(NTXent(0.5).loss(embed(), Rows(2, torch.arange(len(lengths)) // 2)))
        return torch.stack(found)

    packed = losses(lambda: encoder.states(tokens, lengths)[first])
    ways = {"packed": packed, "embed": losses(lambda: encoder.embed(tokens, lengths))}
    encoder.model.set_attn_implementation("eager")
    padded = losses(lambda: encoder.padded_states(tokens, lengths)[first])
    for name, way in ways.items():
        standard_error = ((way.var() + padded.var()) / len(way)).sqrt()
        assert (way.mean() - padded.mean()).abs() < 3 * standard_error, name
        assert 0.7 < way.std() / padded.std() < 1.4, name


def test_attention_dropout_acts_in_a_last_layer_of_cls_alone(tiny: Path) -> None:
    encoder = load_encoder(tiny, pooling="cls").train()
    for module in encoder.model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    tokens, lengths = pack(encoder.tokenizer.tokenize(SENTENCES, 32))
    still = encoder.embed(tokens, lengths)
    assert torch.equal(encoder.embed(tokens, lengths), still)
    last = encoder.model.get_submodule("encoder.layer.1.attention.self.dropout")
    assert isinstance(last, torch.nn.Dropout)
    last.p = 0.3
    assert not torch.allclose(encoder.embed(tokens, lengths), still, atol=1e-3)


def test_a_sentence_is_encoded_the_same_alone_and_among_others(family: Path) -> None:
    encoder = load_encoder(family)
    together = encoder.encode(iter(SENTENCES))
    for i, sentence in enumerate(SENTENCES):
        assert np.allclose(encoder.encode([sentence])[0], together[i], atol=1e-5)


def test_dropout_is_set_under_the_familys_own_names(family: Path) -> None:
    assert is_deterministic(load_encoder(family, dropout=0.0))
    encoder = load_encoder(family, dropout=0.25)
    assert set(dropout_settings(encoder.model.config).values()) == {0.25}
    probabilities = {m.p for m in encoder.model.modules() if isinstance(m, torch.nn.Dropout)}
    assert probabilities == {0.25}
    assert not is_deterministic(encoder)


def test_pooling_takes_cls_or_the_mean_of_all_tokens(tiny: Path) -> None:
    cls, mean = load_encoder(tiny, pooling="cls"), load_encoder(tiny, pooling="mean")
    tokens, lengths = pack(cls.tokenizer.tokenize(SENTENCES, 32))
    cls.model.set_attn_implementation("eager")
    states = cls.padded_states(tokens, lengths).split(lengths.tolist())
    cls.model.set_attn_implementation("packed")
    assert torch.allclose(cls.embed(tokens, lengths), torch.stack([s[0] for s in states]), atol=1e-5)
    assert torch.allclose(mean.embed(tokens, lengths), torch.stack([s.mean(0) for s in states]), atol=1e-5)


@pytest.mark.parametrize("pooling", ["foo", "cls+foo", ""])
def test_a_pooling_that_is_none_is_refused_and_not_the_model(pooling: str, tiny: Path) -> None:
    with pytest.raises(InputError, match=rf"^--pooling {re.escape(pooling)} is no way to pool"):
        load_encoder(tiny, pooling=pooling)


def test_auto_pooling_follows_the_models_own_files_in_both_formats(tiny: Path, tmp_path: Path) -> None:
    assert load_encoder(tiny).pooling == "cls"
    folder = make_bert(tmp_path / "pooled")
    (folder / "1_Pooling").mkdir()
    for settings, expected in (
        ({"pooling_mode_cls_token": False, "pooling_mode_mean_tokens": True}, "mean"),
        ({"pooling_mode": "mean"}, "mean"),
        ({"pooling_mode": "cls"}, "cls"),
        ({"pooling_mode": "max"}, "max"),
    ):
        (folder / "1_Pooling" / "config.json").write_text(json.dumps(settings))
        assert load_encoder(folder).pooling == expected
    assert load_encoder(folder, pooling="mean").pooling == "mean"


def test_the_head_is_used_by_the_loss_alone(tiny: Path) -> None:
    encoder = load_encoder(tiny)
    before = encoder.encode(SENTENCES)
    encoder.head = projection_head(encoder.hidden_size, seed=0)
    assert np.array_equal(encoder.encode(SENTENCES), before)
    tokens, lengths = pack(encoder.tokenizer.tokenize(SENTENCES, 32))
    assert torch.allclose(encoder(tokens, lengths), encoder.head(encoder.embed(tokens, lengths)))


def test_special_tokens_in_the_text_are_text(tiny: Path) -> None:
    encoder = load_encoder(tiny)
    row = encoder.tokenizer.tokenize(["a [SEP] b [CLS] [MASK] [PAD]"], 64)[0]
    special = set(encoder.tokenizer.pretrained.all_special_ids) - {encoder.tokenizer.pretrained.unk_token_id}
    assert [i for i, token in enumerate(row) if token in special] == [0, len(row) - 1]


AWKWARD = [
    *SENTENCES,
    "",
    "a [SEP] b </s> c <mask> [CLS] d",
    " The man  sings, the\u00a0woman plays;\u0301 the dog runs",
    "一只猫坐在垫子上。 the cat",
    "\u200b\x01",
    "a" * 150 + " the end",
]


def by_the_tokenizer(encoder: Encoder, texts: list[str], max_length: int) -> list[list[int]]:
    tokens: list[list[int]] = encoder.tokenizer.pretrained(
        texts, truncation=True, max_length=max_length, split_special_tokens=True
    )["input_ids"]
    return tokens


def assert_tokenizes_as_the_tokenizer(encoder: Encoder) -> None:
    # A unigram model finds its special tokens in a text even if they are to be split; `test_tokenizers` has these.
    finds_own = encoder.tokenizer.is_direct and isinstance(
        encoder.tokenizer.pretrained.backend_tokenizer.model, Unigram
    )
    texts = [text for text in AWKWARD if not (finds_own and "</s>" in text)]
    for max_length in (3, 4, 9, 32):
        expected = by_the_tokenizer(encoder, texts, max_length)
        assert encoder.tokenizer.tokenize(texts, max_length) == expected
        whole = by_the_tokenizer(encoder, texts, 1000)
        rows = encoder.tokenizer.tokenize_rows(texts, max_length)
        assert [row.tolist() for row in np.split(rows.tokens, rows.lengths.cumsum()[:-1])] == expected
        assert rows.is_cut.tolist() == [len(row) > max_length for row in whole]


@pytest.mark.parametrize("side", ["right", "left"])
def test_tokens_and_cuts_are_those_of_the_familys_own_tokenizer(family: Path, side: str) -> None:
    encoder = load_encoder(family)
    assert encoder.tokenizer.is_direct
    before = encoder.tokenizer.fingerprint()
    encoder.tokenizer.pretrained.truncation_side = side
    assert_tokenizes_as_the_tokenizer(encoder)
    assert (encoder.tokenizer.fingerprint() == before) == (side == "right")


@pytest.mark.parametrize("side", ["right", "left"])
def test_a_tokenizer_without_a_fast_backend_is_asked_itself(side: str) -> None:
    tokenizer = ByT5Tokenizer()  # bytes, and one special token at the end
    model = BertModel(
        BertConfig(
            vocab_size=len(tokenizer), hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8
        )
    )
    encoder = Encoder(model, SentenceTokenizer(tokenizer), "cls", 64)
    assert not encoder.tokenizer.is_direct
    before = encoder.tokenizer.fingerprint()
    tokenizer.truncation_side = side
    assert_tokenizes_as_the_tokenizer(encoder)
    assert (encoder.tokenizer.fingerprint() == before) == (side == "right")


def test_a_tokenizer_class_that_changes_the_text_in_python_is_asked_itself(tiny: Path) -> None:
    class Shortening(BertTokenizer):
        def __call__(self, text: list[str], **settings: Any) -> Any:
            return super().__call__([sentence.removesuffix(".") for sentence in text], **settings)

    encoder = Encoder(BertModel.from_pretrained(tiny), SentenceTokenizer(Shortening.from_pretrained(tiny)), "cls", 64)
    assert not encoder.tokenizer.is_direct
    assert encoder.tokenizer.tokenize(["a man."], 8) == encoder.tokenizer.tokenize(["a man"], 8)


def test_saved_encoder_loads_with_the_same_embeddings_and_pooling(tiny: Path, tmp_path: Path) -> None:
    encoder = load_encoder(tiny, pooling="mean")
    save_encoder(encoder, tmp_path / "saved")
    again = load_encoder(tmp_path / "saved")
    assert again.pooling == "mean"
    assert np.array_equal(again.encode(SENTENCES), encoder.encode(SENTENCES))


def test_a_limit_of_tokens_below_the_positions_is_kept(tiny: Path, tmp_path: Path) -> None:
    save_encoder(load_encoder(tiny), tmp_path / "given")
    (tmp_path / "given" / "sentence_bert_config.json").write_text('{"max_seq_length": 16, "do_lower_case": false}')
    encoder = load_encoder(tmp_path / "given")
    assert (encoder.max_length, encoder.max_positions) == (16, 64)
    save_encoder(encoder, tmp_path / "saved")
    again = load_encoder(tmp_path / "saved")
    assert again.max_length == 16
    long = "a man plays the guitar " * 9
    assert np.array_equal(again.encode([long]), encoder.encode([long]))
    assert not np.allclose(again.encode([long]), load_encoder(tiny).encode([long]), atol=1e-3)


def test_a_saved_tokenizer_neither_cuts_nor_pads_as_its_last_call_did(tiny: Path, tmp_path: Path) -> None:
    encoder = load_encoder(tiny)
    encoder.tokenizer.pretrained(["a man plays the guitar"], truncation=True, max_length=4, padding="max_length")
    save_encoder(encoder, tmp_path)
    saved = json.loads((tmp_path / "tokenizer.json").read_text())
    assert (saved["truncation"], saved["padding"]) == (None, None)


def test_a_pooler_that_nobody_trained_is_not_saved(tiny: Path, tmp_path: Path) -> None:
    model = shutil.copytree(tiny, tmp_path / "model")
    weights = load_file(model / "model.safetensors")
    kept = {name: tensor for name, tensor in weights.items() if "pooler" not in name}
    assert len(kept) < len(weights)
    save_file(kept, model / "model.safetensors", metadata={"format": "pt"})
    (tmp_path / "saved").mkdir()
    save_encoder(load_encoder(model), tmp_path / "saved")
    assert load_file(tmp_path / "saved" / "model.safetensors").keys() == kept.keys()


def test_encoding_gives_unit_rows_in_the_order_of_the_sentences(tiny: Path) -> None:
    encoder = load_encoder(tiny)
    rows = encoder.encode(SENTENCES * 20, batch_size=7)
    assert rows.dtype == np.float32
    assert np.allclose(np.linalg.norm(rows, axis=1), 1, atol=1e-6)
    assert np.allclose(rows[:4], rows[-4:], atol=1e-6)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("simcse_train.encoders.encoder.BATCH_TOKENS", 3)  # fewer than any sentence has
        assert np.allclose(encoder.encode(SENTENCES), rows[:4], atol=1e-6)
    raw = encoder.encode(SENTENCES, normalized=False)
    assert np.allclose(raw / np.linalg.norm(raw, axis=1, keepdims=True), rows[:4], atol=1e-6)
    assert encoder.encode([]).shape == (0, 32)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_hidden_layers": 10**9}, "no usable encoder"),
        ({"hidden_size": 10**7}, "no usable encoder"),
        ({"vocab_size": 10**11}, "no usable encoder"),
        ({"is_decoder": True}, "decoder"),
        ({"num_hidden_layers": 3}, "lacks weights"),
        ({"hidden_size": 64}, "can't be loaded"),
    ],
)
def test_a_config_that_does_not_fit_is_refused_before_memory_is_taken(
    tmp_path: Path, changes: dict[str, int], message: str
) -> None:
    folder = make_bert(tmp_path / "bert")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | changes))
    with pytest.raises(InputError, match=message):
        load_encoder(folder)


def test_pickled_weights_are_never_read(tmp_path: Path) -> None:
    folder = make_bert(tmp_path / "bert")
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(b"\x80\x04cos\nsystem\n(S'false'\ntR.")
    with pytest.raises(InputError, match="safetensors"):
        load_encoder(folder)


def test_code_of_the_models_own_is_not_run(tmp_path: Path) -> None:
    folder = make_bert(tmp_path / "bert")
    config = json.loads((folder / "config.json").read_text())
    config["auto_map"] = {"AutoModel": "evil.Model", "AutoConfig": "evil.Config"}
    config["model_type"] = "evil"
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n")
    with pytest.raises(InputError):
        load_encoder(folder)
    assert not (tmp_path / "ran").exists()


def test_a_long_text_costs_no_more_than_its_head(tiny: Path, caplog: pytest.LogCaptureFixture) -> None:
    encoder = load_encoder(tiny)
    with caplog.at_level(logging.WARNING):
        assert len(encoder.tokenizer.tokenize(["man " * 10_000_000], 32)[0]) == 32
    assert not caplog.records


def test_a_single_text_and_what_is_no_text_are_refused(tiny: Path) -> None:
    encoder: Any = load_encoder(tiny)
    with pytest.raises(InputError, match=r"not a single text\. Put it in brackets"):
        encoder.encode("a man plays")
    for wrong in (None, float("nan"), 5, b"a man", ["a man"]):
        with pytest.raises(InputError, match="1 of 2 entries are not. The first of these is entry 1, "):
            encoder.encode(["a man", wrong])
    assert encoder.encode(np.array(["a man", "a dog"])).shape == (2, encoder.hidden_size)


@pytest.mark.parametrize("training", [True, False])
def test_encoding_leaves_the_encoder_in_the_mode_it_was_in(tiny: Path, training: bool) -> None:
    encoder = load_encoder(tiny).train(training)
    rows = encoder.encode(["a man plays"])
    assert np.array_equal(encoder.encode(["a man plays"]), rows)  # without dropout in both modes
    assert encoder.training is training
    assert all(module.training is training for module in encoder.model.modules())


def test_tables_and_halves_of_characters_are_no_sentences(tiny: Path) -> None:
    encoder = load_encoder(tiny)
    for table in ({"a man": 1, "the cat": 2}, SimpleNamespace(columns=["text"])):
        with pytest.raises(InputError, match=r"not a table. Give one of its columns"):
            encoder.encode(table)
    with pytest.raises(InputError, match=r"Entry 1 of the list, .* holds half of a character"):
        encoder.encode(["a man", "a\ud83d"])


def test_an_encoder_can_be_pickled(tiny: Path) -> None:
    encoder = load_encoder(tiny)
    again = pickle.loads(pickle.dumps(encoder))
    assert again.packed == encoder.packed
    assert np.array_equal(again.encode(SENTENCES), encoder.encode(SENTENCES))


def test_an_export_to_onnx_is_named_as_what_it_is(tiny: Path, tmp_path: Path) -> None:
    shutil.copytree(tiny, tmp_path / "exported")
    (tmp_path / "exported" / "onnx").mkdir()
    (tmp_path / "exported" / "model.safetensors").rename(tmp_path / "exported" / "onnx" / "model.onnx")
    with pytest.raises(InputError, match="is an export to ONNX, without the weights that are read here"):
        load_encoder(tmp_path / "exported")


def test_entries_that_are_no_texts_are_counted_and_a_column_of_arrow_is_encoded(tiny: Path) -> None:
    encoder = load_encoder(tiny)
    with pytest.raises(
        InputError, match=r"2 of 3 entries are not\. The first of these is entry 1, None\. Leave them out"
    ):
        encoder.encode(["a man", None, 3.5])  # type: ignore[list-item]
    for column in (pa.array(["a man", "the cat"]), pa.chunked_array([["a man"], ["the cat"]])):
        assert np.array_equal(encoder.encode(column), encoder.encode(["a man", "the cat"]))


@pytest.mark.parametrize(
    ("source", "name"),
    [
        ("/home/me/minilm/model", "minilm/model"),
        ("runs/x/encoder", "x/encoder"),
        ("/home/me/minilm", "minilm"),
        ("someone/some-bert", "some-bert"),
        ("model", "model"),
        ("starter", "starter"),
    ],
)
def test_a_model_is_called_by_what_tells_it_from_others(source: str, name: str) -> None:
    assert model_name(source) == name
