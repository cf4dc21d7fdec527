"""Encoders with something unusual about them: used rightly, or refused before anything is computed."""

from __future__ import annotations

import json
import logging
import os
import shlex
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModel,
    AutoTokenizer,
    BertModel,
    BertTokenizer,
    ByT5Tokenizer,
    CanineTokenizer,
    GPT2Config,
    GPT2Model,
    PreTrainedTokenizerFast,
)

from simcse_train.config import make_config
from simcse_train.encoders.attention import packed_attention
from simcse_train.encoders.encoder import UNLIMITED, dropout_settings
from simcse_train.encoders.loading import load_encoder
from simcse_train.encoders.packing import pack, packing
from simcse_train.encoders.padding import by_equal_length, by_like_length
from simcse_train.encoders.saving import save_encoder
from simcse_train.errors import InputError
from simcse_train.training.plan import resolve
from tests.conftest import make_bert
from tests.encoders.families import byte_pairs, make_family
from tests.encoders.matrix import make_member

SENTENCES = ["a man plays the guitar.", "cat", "the big red dog runs in the park on the blue hill!", "a woman sings"]


def settings(folder: Path, model: Path, **changes: Any) -> Any:
    return make_config({"data": "x", "model": str(model), "output": str(folder), "device": "cpu", **changes})


def edit(folder: Path, file: str, **changes: Any) -> Path:
    content = json.loads((folder / file).read_text())
    (folder / file).write_text(json.dumps(content | changes))
    return folder


def test_what_packed_attention_does_not_know_raises() -> None:
    states = torch.randn(1, 2, 5, 4)
    layout = packing(torch.tensor([2, 3]))
    for unknown in ({"softcap": 30.0}, {"s_aux": torch.zeros(2)}, {"position_bias": torch.zeros(1)}, {"anything": 1}):
        with pytest.raises(TypeError, match=next(iter(unknown))):
            packed_attention(torch.nn.Module(), states, states, states, None, packing=layout, **unknown)
    packed_attention(torch.nn.Module(), states, states, states, None, packing=layout, softcap=None)


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("window", [None, 1, 2, 4])
def test_windows_causal_masks_and_shared_heads_are_those_of_each_sentence_alone(
    window: int | None, causal: bool
) -> None:
    torch.manual_seed(0)
    lengths = torch.tensor([1, 7, 4])
    query = torch.randn(1, 4, 12, 8, requires_grad=True)
    key, value = torch.randn(2, 1, 2, 12, 8)
    found, _ = packed_attention(
        torch.nn.Module(), query, key, value, None, packing=packing(lengths), sliding_window=window, is_causal=causal
    )
    for start, length in ((0, 1), (1, 7), (8, 4)):
        part = slice(start, start + length)
        distance = torch.arange(length)[:, None] - torch.arange(length)
        seen = (distance >= 0 if causal else distance == distance) & (distance.abs() < (window or 99))
        keys, values = (states[:, :, part].repeat_interleave(2, dim=1) for states in (key, value))
        scores = (query[:, :, part] @ keys.transpose(-1, -2) / 8**0.5).masked_fill(~seen, -torch.inf)
        assert torch.allclose(found[0, part], (scores.softmax(-1) @ values)[0].transpose(0, 1), atol=1e-5)
    found.sum().backward()
    assert query.grad is not None
    assert query.grad.isfinite().all()


def test_rows_of_like_length_share_a_batch_and_none_is_lost() -> None:
    lengths = torch.tensor([9, 2, 3, 9, 2, 8, 3, 2, 30, 31])
    for groups in (by_like_length(lengths), by_equal_length(lengths)):
        assert sorted(torch.cat(groups).tolist()) == list(range(10))
    assert all(len(set(lengths[group].tolist())) == 1 for group in by_equal_length(lengths))
    padded = sum(len(group) * int(lengths[group].max()) for group in by_like_length(lengths))
    assert padded < 0.6 * 10 * 31
    assert len(by_like_length(torch.full((64,), 32))) == 1


@pytest.mark.parametrize("family", ["mpnet", "convbert"])
def test_states_come_back_in_the_order_of_the_sentences(family: str, tmp_path: Path) -> None:
    encoder = load_encoder(make_member(family, tmp_path / family))
    rows = encoder.tokenizer.tokenize(SENTENCES * 4, 32)
    together = encoder.embed(*pack(rows))
    for i, row in enumerate(rows):
        assert torch.allclose(encoder.embed(*pack([row]))[0], together[i], atol=1e-5)


def test_relative_embeddings_are_cut_without_a_change_of_states_or_gradients(tmp_path: Path) -> None:
    folder = make_member("deberta-v2", tmp_path / "deberta-v2")
    encoder, plain = load_encoder(folder), AutoModel.from_pretrained(folder).eval()
    given = encoder.tokenizer.pretrained(SENTENCES, padding=True, return_tensors="pt")
    found, expected = encoder.model(**given).last_hidden_state, plain(**given).last_hidden_state
    assert torch.allclose(found, expected, atol=1e-5)
    found.square().sum().backward()
    expected.square().sum().backward()
    wanted = dict(plain.named_parameters())
    for name, parameter in encoder.model.named_parameters():
        gradient = wanted[name].grad
        if gradient is not None:
            assert parameter.grad is not None
            assert torch.allclose(parameter.grad, gradient, atol=1e-2, rtol=1e-3), name
    attention = encoder.model.get_submodule("encoder.layer.0.attention.self")
    assert attention.pos_ebd_size == given["input_ids"].shape[1]


def test_bigbird_attends_to_everything_whatever_it_read_first(tmp_path: Path) -> None:
    encoder = load_encoder(make_member("big_bird", tmp_path / "big_bird"))
    long = "the man plays " * 200
    first = encoder.encode([long])
    encoder.encode(["cat"])
    assert np.array_equal(encoder.encode([long]), first)
    save_encoder(encoder, tmp_path / "saved")
    assert json.loads((tmp_path / "saved" / "config.json").read_text())["attention_type"] == "original_full"


def test_a_model_of_the_wrong_attention_for_its_pooling_is_refused(tmp_path: Path) -> None:
    folder = make_member("gpt2", tmp_path / "gpt2")
    with pytest.raises(InputError, match="left to right.*--pooling last"):
        load_encoder(folder, pooling="cls")
    for pooling in ("auto", "last", "mean"):
        rows = load_encoder(folder, pooling=pooling).encode(SENTENCES)
        assert np.abs(rows - rows[0]).max() > 1e-2


def test_a_tokenizer_without_special_or_padding_tokens_is_used_and_saved(tmp_path: Path) -> None:
    (tmp_path / "gpt2").mkdir()
    vocabulary, merges = byte_pairs(tmp_path / "gpt2")
    from transformers import GPT2Tokenizer

    tokenizer = GPT2Tokenizer(
        vocabulary, merges, unk_token="<unk>", bos_token="<s>", eos_token="</s>", model_max_length=64
    )
    assert tokenizer.pad_token is None
    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=len(tokenizer), n_embd=32, n_layer=2, n_head=4, n_positions=64, initializer_range=0.1
    )
    GPT2Model(config).save_pretrained(tmp_path / "gpt2")
    tokenizer.save_pretrained(tmp_path / "gpt2")
    encoder = load_encoder(tmp_path / "gpt2")
    assert encoder.tokenizer.special_tokens == 0
    texts = [*SENTENCES, ""]
    rows = encoder.encode(texts)
    assert not rows[-1].any()
    save_encoder(encoder, tmp_path / "saved")
    sentence_transformers = pytest.importorskip("sentence_transformers")
    theirs = sentence_transformers.SentenceTransformer(str(tmp_path / "saved"), device="cpu")
    assert np.allclose(theirs.encode(SENTENCES, normalize_embeddings=True), rows[:-1], atol=1e-5)


def test_padding_on_the_left_is_saved_as_padding_on_the_right(tmp_path: Path) -> None:
    folder = make_bert(tmp_path / "bert")
    tokenizer = BertTokenizer.from_pretrained(folder, padding_side="left")
    tokenizer.save_pretrained(folder)
    assert AutoTokenizer.from_pretrained(folder).padding_side == "left"
    encoder = load_encoder(folder)
    save_encoder(encoder, tmp_path / "saved")
    sentence_transformers = pytest.importorskip("sentence_transformers")
    theirs = sentence_transformers.SentenceTransformer(str(tmp_path / "saved"), device="cpu")
    assert np.allclose(theirs.encode(SENTENCES, normalize_embeddings=True), encoder.encode(SENTENCES), atol=1e-5)


def test_tokens_without_a_row_in_the_embeddings_are_found_at_once(tmp_path: Path) -> None:
    folder = make_bert(tmp_path / "bert")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.add_tokens(["[part]"])
    tokenizer.save_pretrained(folder)
    with pytest.raises(InputError, match=r"\[part\].*resize_token_embeddings"):
        load_encoder(folder)


def test_a_slow_tokenizer_keeps_the_users_tokens_whole_too(tmp_path: Path) -> None:
    folder = make_bert(tmp_path / "bert")
    tokenizer = ByT5Tokenizer(extra_ids=0)
    tokenizer.add_tokens(["theword"])
    tokenizer.add_tokens(["[PART]"], special_tokens=True)
    model = BertModel.from_pretrained(folder)
    model.resize_token_embeddings(len(tokenizer))
    for name in ("tokenizer.json", "tokenizer_config.json", "vocab.txt"):
        (folder / name).unlink(missing_ok=True)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    encoder = load_encoder(folder)
    assert not encoder.tokenizer.is_direct
    rows = encoder.tokenizer.tokenize(["a theword [PART] b", "a </s> b"], 64)
    assert rows[0] == tokenizer("a theword [PART] b")["input_ids"]
    assert tokenizer.eos_token_id not in rows[1][:-1]


def test_characters_hashed_instead_of_looked_up_are_refused_without_a_traceback(tmp_path: Path) -> None:
    folder = make_member("canine", tmp_path / "canine")
    for name in ("tokenizer.json", "tokenizer_config.json", "vocab.txt"):
        (folder / name).unlink(missing_ok=True)
    CanineTokenizer(model_max_length=600).save_pretrained(folder)
    with pytest.raises(InputError, match="canine, fails on sentences of 2 tokens"):
        load_encoder(folder)


def test_a_tokenizer_that_gives_more_than_ids_is_refused_by_what_it_gives(tmp_path: Path) -> None:
    from transformers import RoCBertTokenizer

    folder = make_member("roc_bert", tmp_path / "roc_bert")
    names = ["vocab.txt", "word_shape.json", "word_pronunciation.json"]
    tokens = (
        (folder / "vocab.txt").read_text().split()
        if (folder / "vocab.txt").is_file()
        else list(AutoTokenizer.from_pretrained(folder).get_vocab())
    )
    (tmp_path / names[0]).write_text("\n".join(tokens) + "\n")
    for name in names[1:]:
        (tmp_path / name).write_text(json.dumps({token: i % 7 for i, token in enumerate(tokens)}))
    for path in folder.glob("*token*"):
        path.unlink()
    RoCBertTokenizer(*(str(tmp_path / name) for name in names), model_max_length=600).save_pretrained(folder)
    with pytest.raises(InputError, match="input_pronunciation_ids, input_shape_ids"):
        load_encoder(folder)


def test_a_setting_that_says_whether_is_not_taken_for_a_dropout_rate(tmp_path: Path) -> None:
    encoder = load_encoder(make_member("esm", tmp_path / "esm"), dropout=0.2)
    assert encoder.model.config.token_dropout is True
    assert set(dropout_settings(encoder.model.config).values()) == {0.2}


def test_a_model_without_a_limit_of_positions_takes_any_length(tmp_path: Path) -> None:
    encoder = load_encoder(make_member("xlnet", tmp_path / "xlnet"))
    assert encoder.max_positions == UNLIMITED
    assert encoder.max_length == 692
    assert resolve(settings(tmp_path, tmp_path / "xlnet", max_length=600), encoder, tmp_path).max_length == 600


def test_a_precision_in_which_the_encoder_fails_is_not_chosen_and_refused(tmp_path: Path) -> None:
    folder = make_member("deberta", tmp_path / "deberta")
    encoder = load_encoder(folder)
    assert resolve(settings(tmp_path, folder), encoder, tmp_path).precision == "fp32"
    with pytest.raises(InputError, match="--precision bf16.*fp32"):
        resolve(settings(tmp_path, folder, precision="bf16"), encoder, tmp_path)


def test_a_prompt_longer_than_the_sentence_may_be_is_refused(tmp_path: Path) -> None:
    folder = make_bert(tmp_path / "bert")
    save_encoder(load_encoder(folder), folder)
    prompts = {"prompts": {"q": "the man plays the guitar on the hill: "}, "default_prompt_name": "q"}
    (folder / "config_sentence_transformers.json").write_text(json.dumps(prompts))
    encoder = load_encoder(folder)
    taken = encoder.tokenizer.special_tokens
    assert taken > 8
    for length in (8, taken):
        with pytest.raises(InputError, match=f"--max-length {length} .*prompt"):
            resolve(settings(tmp_path, folder, max_length=length), encoder, tmp_path)
    assert resolve(settings(tmp_path, folder, max_length=taken + 1), encoder, tmp_path).max_length == taken + 1


def test_advice_on_dropout_is_only_given_where_it_helps(tmp_path: Path) -> None:
    folder = make_bert(tmp_path / "bert", dropout=0.0)
    with pytest.raises(InputError, match="Set it with --dropout 0.1"):
        resolve(settings(tmp_path, folder), load_encoder(folder), tmp_path)
    resolve(settings(tmp_path, folder), load_encoder(folder, dropout=0.1), tmp_path)
    qwen = make_member("qwen2", tmp_path / "qwen2", attention_dropout=0.0)
    resolve(settings(tmp_path, qwen), load_encoder(qwen, dropout=0.1), tmp_path)


def run_advice(message: str, marker: str) -> None:
    command = shlex.split(message[message.index(marker) :])
    subprocess.run(
        [sys.executable, *command[1:]], check=True, env={**os.environ, "HF_HUB_OFFLINE": "1"}, capture_output=True
    )


def test_pickled_weights_are_refused_with_the_line_that_converts_them(tmp_path: Path) -> None:
    folder = make_bert(tmp_path / "bert")
    expected = load_encoder(folder).encode(SENTENCES)
    torch.save(AutoModel.from_pretrained(folder).state_dict(), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    with pytest.raises(InputError, match="pytorch_model.bin alone") as error:
        load_encoder(folder)
    run_advice(str(error.value), "python -c")
    assert np.allclose(load_encoder(folder).encode(SENTENCES), expected, atol=1e-6)


def test_an_adapter_is_refused_with_the_line_that_merges_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    peft = pytest.importorskip("peft")
    folder = make_bert(tmp_path / "bert")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        settings = peft.LoraConfig(
            task_type="FEATURE_EXTRACTION", target_modules=["query", "value"], init_lora_weights=False
        )
        model = peft.get_peft_model(AutoModel.from_pretrained(folder), settings)
        model.save_pretrained(tmp_path / "adapter")
    with pytest.raises(InputError, match="adapter") as error:
        load_encoder(tmp_path / "adapter")
    monkeypatch.chdir(tmp_path)
    run_advice(str(error.value), "python -c")
    merged = load_encoder(tmp_path / "merged").encode(SENTENCES)
    assert not np.allclose(merged, load_encoder(folder).encode(SENTENCES), atol=1e-3)


def test_a_sentencepiece_model_without_its_packages_names_the_extra(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from simcse_train.encoders import sources

    folder = make_bert(tmp_path / "bert")
    for path in [*folder.glob("*token*"), folder / "vocab.txt"]:
        path.unlink(missing_ok=True)
    edit(folder, "config.json", model_type="camembert")
    (folder / "sentencepiece.bpe.model").write_bytes(b"x")
    monkeypatch.setattr(sources, "_is_installed", lambda module: module != "google.protobuf")
    with pytest.raises(InputError, match=r'pip install "simcse-train\[sentencepiece\]"'):
        load_encoder(folder)


@pytest.mark.parametrize(
    "number", ["num_attention_heads", "max_position_embeddings", "type_vocab_size", "chunk_size_feed_forward"]
)
def test_an_absurd_number_anywhere_in_the_configuration_is_refused(number: str, tmp_path: Path) -> None:
    folder = edit(make_bert(tmp_path / "bert"), "config.json", **{number: 10**12})
    with pytest.raises(InputError):
        load_encoder(folder)


def test_a_tokenizer_that_fails_on_words_it_does_not_know_is_refused(tmp_path: Path) -> None:
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import Whitespace

    folder = make_bert(tmp_path / "bert")
    words = {
        word: i
        for i, word in enumerate(
            [
                "<pad>",
                *[
                    "a",
                    "man",
                    "plays",
                    "the",
                    "guitar",
                    "cat",
                    "big",
                    "red",
                    "dog",
                    "runs",
                    "in",
                    "park",
                    "Why",
                    "?",
                    ".",
                ],
            ]
        )
    }
    backend = Tokenizer(WordLevel(words))
    backend.pre_tokenizer = Whitespace()
    for path in [*folder.glob("*token*"), folder / "vocab.txt"]:
        path.unlink(missing_ok=True)
    PreTrainedTokenizerFast(tokenizer_object=backend, pad_token="<pad>", model_max_length=64).save_pretrained(folder)
    with pytest.raises(InputError, match="Missing"):
        load_encoder(folder)


def plain_mean(folder: Path, sentence: str) -> Any:
    """Return the mean state of a sentence that transformers alone gives."""
    model, tokenizer = AutoModel.from_pretrained(folder).eval(), AutoTokenizer.from_pretrained(folder)
    with torch.inference_mode():
        return model(**tokenizer(sentence, return_tensors="pt"), return_dict=True).last_hidden_state[0].mean(0).numpy()


@pytest.mark.parametrize("changes", [{"output_attentions": True, "output_hidden_states": True}, {"return_dict": False}])
def test_what_a_configuration_asks_to_return_beside_the_states_changes_nothing(
    changes: dict[str, bool], tmp_path: Path
) -> None:
    folder = make_bert(tmp_path / "bert")
    expected = load_encoder(folder).encode(SENTENCES)
    encoder = load_encoder(edit(folder, "config.json", **changes))
    assert encoder.packed
    save_encoder(encoder, tmp_path / "saved")
    for found in (encoder, load_encoder(tmp_path / "saved")):
        assert np.array_equal(found.encode(SENTENCES), expected)


@pytest.mark.parametrize("family", ["roberta", "xlm-roberta"])
def test_a_padding_token_that_sentences_have_is_not_counted_as_in_transformers(family: str, tmp_path: Path) -> None:
    (tmp_path / family).mkdir()
    folder = make_family(family, tmp_path / family)
    assert load_encoder(folder).packed
    sentence = "zqx! xqz! the dog runs"
    number = min(i for i in AutoTokenizer.from_pretrained(folder)(sentence)["input_ids"] if i > 3)  # "!" or a space
    edit(folder, "config.json", pad_token_id=number)
    encoder = load_encoder(folder, pooling="mean")
    assert not encoder.packed
    assert np.allclose(encoder.encode([sentence], normalized=False)[0], plain_mean(folder, sentence), atol=1e-5)


def add_weights(folder: Path, **more: torch.Tensor) -> None:
    weights = load_file(folder / "model.safetensors")
    save_file(weights | more, folder / "model.safetensors", metadata={"format": "pt"})


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("encoder.layer.0.attention.self.distance_embedding.weight", {"position_embedding_type": "relative_key"}),
        ("bert.encoder.layer.1.attention.self.distance_embedding.weight", {"position_embedding_type": "relative_key"}),
        ("embeddings.task_type_embeddings.weight", {}),
        ("encoder.layer.2.attention.self.query.bias", {}),  # a layer too many
    ],
)
def test_weights_that_the_configuration_leaves_out_are_refused(
    name: str, changes: dict[str, Any], tmp_path: Path
) -> None:
    folder = make_bert(tmp_path / "bert")
    add_weights(folder, **{name: torch.ones(127, 8)})
    edit(folder, "config.json", **changes)
    with pytest.raises(InputError, match=rf"does not use.*{name.removeprefix('bert.')}.*config\.json"):
        load_encoder(folder)


def test_a_configuration_of_fewer_layers_than_the_weights_is_refused(tmp_path: Path) -> None:
    folder = edit(make_bert(tmp_path / "bert"), "config.json", num_hidden_layers=1)
    with pytest.raises(InputError, match=r"'encoder\.layer\.1\.[^']*' the first of 16"):
        load_encoder(folder)


def test_positions_and_heads_that_older_releases_saved_are_no_surplus(tmp_path: Path) -> None:
    folder = make_bert(tmp_path / "bert")
    expected = load_encoder(folder).encode(SENTENCES)
    add_weights(
        folder,
        **{
            "embeddings.position_ids": torch.arange(64)[None],
            "bert.embeddings.token_type_ids": torch.zeros(1, 64, dtype=torch.long),
            "bert.embeddings.word_embeddings._weight": torch.ones(64, 32),
            "cls.predictions.transform.dense.weight": torch.ones(32, 32),
        },
    )
    assert np.array_equal(load_encoder(folder).encode(SENTENCES), expected)


def test_loading_says_nothing_on_the_screen(tiny: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        load_encoder(tiny)
    assert not [record for record in caplog.records if record.name.startswith("simcse_train")]


def test_a_missing_pooler_and_a_surplus_head_are_not_reported_by_transformers(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = make_bert(tmp_path / "bert")
    weights = load_file(folder / "model.safetensors")
    kept = {name: tensor for name, tensor in weights.items() if "pooler" not in name}
    save_file(kept | {"cls.bias": torch.zeros(3)}, folder / "model.safetensors", metadata={"format": "pt"})
    logger = logging.getLogger("transformers.modeling_utils")
    logger.addHandler(caplog.handler)
    caplog.set_level(logging.WARNING, "transformers")  # a command line run before this test has made it quieter
    try:
        load_encoder(folder)
        assert "LOAD REPORT" not in caplog.text
        AutoModel.from_pretrained(folder)
        assert "LOAD REPORT" in caplog.text  # what the caller loads is reported as before
    finally:
        logger.removeHandler(caplog.handler)
