"""Folders of sentence-transformers give the embeddings that this library gives, or are refused by name."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModel, AutoTokenizer, BertTokenizer

from simcse_train.encoders.head import projection_head
from simcse_train.encoders.loading import load_encoder
from simcse_train.encoders.packing import pack
from simcse_train.encoders.saving import save_encoder
from simcse_train.errors import InputError
from tests.conftest import make_bert

sentence_transformers = pytest.importorskip("sentence_transformers")
with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    from sentence_transformers import SentenceTransformer, models  # type: ignore[attr-defined]

SENTENCES = ["A Man plays the guitar.", "cat", "the big red dog runs in the park on the blue hill!", "a " * 100, "Why?"]


def theirs(folder: Path, sentences: list[str] = SENTENCES) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return SentenceTransformer(str(folder), device="cpu").encode(sentences)


def build(tmp_path: Path, *after: Callable[[int], Any], pooling: Any = "mean", **settings: Any) -> Path:
    """Save a folder by the library itself; `after` makes modules from the size of the embedding before them."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.manual_seed(1)
        transformer = models.Transformer(str(make_bert(tmp_path / "bert")), max_seq_length=24)
        chain = [transformer, models.Pooling(32, pooling_mode=pooling)]
        for make in after:
            chain.append(make(chain[-1].get_embedding_dimension()))
        SentenceTransformer(modules=chain, device="cpu", **settings).save(str(tmp_path / "model"))
    return tmp_path / "model"


def assert_same_everywhere(folder: Path, tmp_path: Path) -> None:
    """Compare with the library: as loaded, as saved again, and what the library makes of what was saved."""
    expected = theirs(folder)
    encoder = load_encoder(folder)
    assert np.allclose(encoder.encode(SENTENCES, normalized=False), expected, atol=1e-5)
    assert encoder.hidden_size == expected.shape[1]
    save_encoder(encoder, tmp_path / "saved")
    assert np.allclose(theirs(tmp_path / "saved"), expected, atol=1e-5)
    assert np.allclose(load_encoder(tmp_path / "saved").encode(SENTENCES, normalized=False), expected, atol=1e-5)


def dense(size: int) -> Any:
    return models.Dense(size, 16, activation_function=torch.nn.GELU())


def layer_norm(size: int) -> Any:
    found = models.LayerNorm(size)
    torch.nn.init.normal_(found.norm.weight)
    return found


def unit(_: int) -> Any:
    return models.Normalize()


MODES = [
    "cls",
    "max",
    "mean",
    "mean_sqrt_len_tokens",
    "weightedmean",
    "lasttoken",
    ("mean", "cls"),
    ("cls", "max", "mean"),
]


@pytest.mark.parametrize("pooling", MODES, ids=str)
def test_every_pooling_is_applied_and_kept(pooling: Any, tmp_path: Path) -> None:
    assert_same_everywhere(build(tmp_path, pooling=pooling), tmp_path)


@pytest.mark.parametrize("after", [[unit], [dense], [dense, unit], [layer_norm], [layer_norm, dense, unit]])
def test_modules_after_the_pooling_are_applied_trained_and_kept(after: list[Any], tmp_path: Path) -> None:
    folder = build(tmp_path, *after)
    assert_same_everywhere(folder, tmp_path)
    encoder = load_encoder(folder).train()
    encoder(*pack(encoder.tokenizer.tokenize(SENTENCES, 16))).square().sum().backward()
    weights = list(encoder.modules_after.parameters())
    assert bool(weights) == (after != [unit])
    assert all(weight.grad is not None for weight in weights)


@pytest.mark.parametrize("mode", ["mean", "cls"])
def test_a_default_prompt_precedes_every_sentence_and_is_kept(mode: str, tmp_path: Path) -> None:
    prompts = {"prompts": {"query": "the dog: ", "document": ""}, "default_prompt_name": "query"}
    folder = build(tmp_path, pooling=mode, **prompts)
    assert_same_everywhere(folder, tmp_path)
    plain = build(tmp_path / "plain", pooling=mode)
    assert not np.allclose(theirs(plain), theirs(folder), atol=1e-2)
    encoder = load_encoder(folder)
    assert encoder.tokenizer.fingerprint() != load_encoder(plain).tokenizer.fingerprint()
    assert encoder.tokenizer.special_tokens == len(encoder.tokenizer.tokenize([""], 64)[0]) > 2


def test_lower_casing_is_applied_and_kept(tmp_path: Path) -> None:
    folder = build(tmp_path)
    BertTokenizer.from_pretrained(folder, do_lower_case=False).save_pretrained(folder)
    without = theirs(folder)
    settings = json.loads((folder / "sentence_bert_config.json").read_text())
    (folder / "sentence_bert_config.json").write_text(json.dumps(settings | {"do_lower_case": True}))
    assert not np.allclose(theirs(folder), without, atol=1e-2)
    assert_same_everywhere(folder, tmp_path)


def test_old_layouts_are_read_wherever_their_modules_lie(tmp_path: Path) -> None:
    folder = build(tmp_path, dense)
    expected = theirs(folder)
    inner = folder / "0_Transformer"
    inner.mkdir()
    for path in [
        p for p in folder.iterdir() if p.is_file() and not p.name.startswith(("modules", "config_sent", "README"))
    ]:
        path.rename(inner / path.name)
    (folder / "1_Pooling").rename(folder / "pool")
    modules = json.loads((folder / "modules.json").read_text())
    modules[0]["path"], modules[1]["path"] = "0_Transformer", "pool"
    for module in modules:
        module["type"] = "sentence_transformers.models." + module["type"].rsplit(".", 1)[-1]
    (folder / "modules.json").write_text(json.dumps(modules))
    flags = {"word_embedding_dimension": 32, "pooling_mode_cls_token": False, "pooling_mode_mean_tokens": True}
    (folder / "pool" / "config.json").write_text(json.dumps(flags))
    assert np.allclose(theirs(folder), expected, atol=1e-6)
    assert_same_everywhere(folder, tmp_path)


def test_tokens_that_the_user_added_stay_whole_and_those_of_the_class_are_text(tmp_path: Path) -> None:
    folder = make_bert(tmp_path / "bert")
    tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModel.from_pretrained(folder)
    tokenizer.add_tokens(["[PART]"], special_tokens=True)
    tokenizer.add_tokens(["theword"])
    model.resize_token_embeddings(len(tokenizer))
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    encoder = load_encoder(folder)
    row = encoder.tokenizer.tokenize(["a [PART] theword [SEP] b"], 64)[0]
    assert row == tokenizer("a [PART] theword [ SEP ] b")["input_ids"]
    assert AutoTokenizer.from_pretrained(folder)("[PART]")["input_ids"] == encoder.tokenizer.tokenize(["[PART]"], 8)[0]
    save_encoder(encoder, tmp_path / "saved")
    again = AutoTokenizer.from_pretrained(tmp_path / "saved")
    assert again.added_tokens_decoder == tokenizer.added_tokens_decoder


def edit(folder: Path, file: str, change: Callable[[Any], Any]) -> None:
    (folder / file).write_text(json.dumps(change(json.loads((folder / file).read_text()))))


NORMALIZE = {"idx": 1, "name": "1", "path": "norm", "type": "sentence_transformers.models.Normalize"}


def with_module(kind: str, at: int) -> Callable[[Any], Any]:
    entry = {"idx": at, "name": str(at), "path": "", "type": kind}
    return lambda modules: [*modules[:at], entry, *modules[at:]]


@pytest.mark.parametrize(
    ("file", "change", "message"),
    [
        ("modules.json", with_module("sentence_transformers.models.WordWeights", 2), "WordWeights"),
        ("modules.json", with_module("sentence_transformers.models.CNN", 1), "CNN"),
        ("modules.json", with_module("sentence_transformers.models.Router", 0), "Router"),
        ("modules.json", with_module("sentence_transformers.models.StaticEmbedding", 0), "StaticEmbedding"),
        ("modules.json", with_module("sentence_transformers.models.CLIPModel", 0), "CLIPModel"),
        ("modules.json", with_module("custom_st.Transformer", 0), "code of its own"),
        ("modules.json", lambda _: {"a": 1}, "not a list"),
        ("modules.json", lambda modules: modules[:1], "without a Pooling module"),
        ("modules.json", lambda modules: [*modules[:1], NORMALIZE], "without a Pooling module"),
        ("modules.json", lambda modules: [modules[0], modules[1] | {"path": "../x"}], "outside the folder"),
        ("1_Pooling/config.json", lambda old: old | {"pooling_mode": "median"}, "median"),
        ("sentence_bert_config.json", lambda old: old | {"max_seq_length": -3}, "max_seq_length"),
        ("sentence_bert_config.json", lambda old: old | {"query_length": 12}, "query_length"),
        ("config_sentence_transformers.json", lambda old: old | {"default_prompt_name": "x"}, "default prompt 'x'"),
        ("config_sentence_transformers.json", lambda old: old | {"truncate_dim": 8}, "truncate_dim"),
        ("config_sentence_transformers.json", lambda old: old | {"model_type": "SparseEncoder"}, "SparseEncoder"),
    ],
)
def test_what_cannot_be_applied_is_refused_by_name(file: str, change: Any, message: str, tmp_path: Path) -> None:
    folder = build(tmp_path)
    edit(folder, file, change)
    with pytest.raises(InputError, match=message):
        load_encoder(folder)


def test_a_pooling_that_is_named_stands_in_place_of_a_missing_one(tmp_path: Path) -> None:
    folder = build(tmp_path)
    expected = load_encoder(folder).encode(SENTENCES)
    edit(folder, "modules.json", lambda modules: modules[:1])
    assert np.array_equal(load_encoder(folder, pooling="mean").encode(SENTENCES), expected)


def test_a_normalisation_of_something_else_is_refused(tmp_path: Path) -> None:
    folder = build(tmp_path, lambda _: models.Normalize())
    assert_same_everywhere(folder, tmp_path)
    path = json.loads((folder / "modules.json").read_text())[2]["path"]
    (folder / path / "config.json").write_text(json.dumps({"module_input_name": "token_embeddings"}))
    with pytest.raises(InputError, match="Normalize does more"):
        load_encoder(folder)


def test_max_seq_length_stands_in_place_of_the_tokenizers_own_limit(tmp_path: Path) -> None:
    folder = build(tmp_path)
    edit(folder, "tokenizer_config.json", lambda old: old | {"model_max_length": 12})
    edit(folder, "sentence_bert_config.json", lambda old: old | {"max_seq_length": 24})
    assert load_encoder(folder).max_length == 24
    assert_same_everywhere(folder, tmp_path)


def test_a_prompt_that_pooling_leaves_out_is_refused(tmp_path: Path) -> None:
    folder = build(tmp_path, prompts={"query": "the dog: "}, default_prompt_name="query")
    edit(folder, "1_Pooling/config.json", lambda old: old | {"include_prompt": False})
    with pytest.raises(InputError, match="include_prompt"):
        load_encoder(folder)


def test_a_pooling_whose_settings_are_missing_is_refused(tmp_path: Path) -> None:
    folder = make_bert(tmp_path / "bert")
    save_encoder(load_encoder(folder), tmp_path / "saved")
    (tmp_path / "saved" / "1_Pooling" / "config.json").unlink()
    with pytest.raises(InputError, match="Pooling has no 1_Pooling/config.json"):
        load_encoder(tmp_path / "saved")


def test_the_head_is_given_the_pooled_state_and_not_its_unit_vector(tmp_path: Path) -> None:
    plain, encoder = (
        load_encoder(build(tmp_path / "plain", pooling="cls")),
        load_encoder(build(tmp_path, unit, pooling="cls")),
    )
    head = encoder.head = projection_head(encoder.hidden_size, seed=0)
    batch = pack(encoder.tokenizer.tokenize(SENTENCES, 16))
    pooled = plain.embed(*batch)
    assert torch.allclose(encoder.embed(*batch), torch.nn.functional.normalize(pooled), atol=1e-6)
    assert torch.allclose(encoder(*batch), head(pooled), atol=1e-6)
    assert not torch.allclose(head(pooled), head(encoder.embed(*batch)), atol=1e-2)
