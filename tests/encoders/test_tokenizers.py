"""Tokenizers of every kind: the user's tokens stay whole, those of the class are text, and lower-casing is applied."""

from __future__ import annotations

import json
import shutil
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from transformers import AutoModel, AutoTokenizer, PreTrainedTokenizerFast

from simcse_train.encoders.loading import load_encoder
from simcse_train.encoders.saving import save_encoder
from simcse_train.encoders.tokenizer import SentenceTokenizer
from simcse_train.errors import InputError
from tests.encoders.matrix import make_member
from tests.encoders.tokenizers import OWN, make_tokenizer

KINDS = ("bert", "roberta", "clip_text_model", "modernbert", "xlm-roberta", "albert", "t5", "xlnet", "gemma3_text",
         "mistral", "deberta-v2", "camembert")  # fmt: skip
SENTENCES = ["A Man plays the Guitar.", "cat", "the big red dog runs in the park on the blue hill!", "Why?"]


def theirs(folder: Path, sentences: list[str]) -> Any:
    sentence_transformers = pytest.importorskip("sentence_transformers")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return sentence_transformers.SentenceTransformer(str(folder), device="cpu").encode(
            sentences, normalize_embeddings=True
        )


def own_tokens(tokenizer: Any) -> set[str]:
    names = ("bos_token", "eos_token", "sep_token", "pad_token", "cls_token", "mask_token")
    return {token for name in names if (token := getattr(tokenizer, name))}


@pytest.mark.parametrize("family", ["bert", *OWN])
def test_a_token_of_the_class_in_a_sentence_is_text(family: str, tmp_path: Path) -> None:
    tokenizer: Any = make_tokenizer(family, tmp_path, 692)
    reading = SentenceTokenizer(tokenizer)
    around = reading.tokenize([""], 64)[0]
    for token in own_tokens(tokenizer):
        rows = reading.tokenize([f"a {token} b", f"{token}", "a b"], 64)
        number = tokenizer.convert_tokens_to_ids(token)
        assert [row.count(number) for row in rows] == [around.count(number)] * 3, token
    assert reading.tokenize(SENTENCES, 64) == tokenizer(SENTENCES)["input_ids"]


def test_a_tokenizer_of_whole_words_does_not_take_a_word_for_its_own_token() -> None:
    backend = Tokenizer(WordLevel({"<s>": 0, "[UNK]": 1, "a": 2, "man": 3}, unk_token="[UNK]"))
    backend.pre_tokenizer = WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, cls_token="<s>", pad_token="<s>", unk_token="[UNK]")
    assert SentenceTokenizer(tokenizer).tokenize(["a <s> man", "a cat"], 8) == [[2, 1, 3], [2, 1]]


@pytest.mark.parametrize("family", KINDS)
def test_tokens_that_the_user_added_stay_whole(family: str, tmp_path: Path) -> None:
    folder = make_member(family, tmp_path / "model")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.add_tokens(["[PART]"], special_tokens=True)
    tokenizer.add_tokens(["theword"])
    tokenizer.save_pretrained(folder)
    model = load_model(folder)
    model.resize_token_embeddings(len(tokenizer))
    model.save_pretrained(folder)
    encoder = load_encoder(folder, pooling="mean")
    texts = ["a [PART] dog and theword", "[PART]", "theword"]
    rows = encoder.tokenizer.tokenize(texts, 64)
    assert rows == tokenizer(texts)["input_ids"]
    for token in ("[PART]", "theword"):
        assert tokenizer.convert_tokens_to_ids(token) in rows[0]
    save_encoder(encoder, tmp_path / "saved")
    assert np.allclose(theirs(tmp_path / "saved", texts), encoder.encode(texts), atol=1e-5)


def load_model(folder: Path) -> Any:
    if json.loads((folder / "config.json").read_text())["model_type"] != "t5":
        return AutoModel.from_pretrained(folder)
    from transformers import T5EncoderModel

    return T5EncoderModel.from_pretrained(folder)


@pytest.mark.parametrize("family", KINDS)
def test_lower_casing_and_a_prompt_are_those_of_sentence_transformers(family: str, tmp_path: Path) -> None:
    folder = make_member(family, tmp_path / "model")
    save_encoder(load_encoder(folder, pooling="mean"), tmp_path / "saved")
    settings = tmp_path / "saved" / "sentence_bert_config.json"
    settings.write_text(json.dumps({"max_seq_length": 24, "do_lower_case": True}))
    prompts = {"prompts": {"query": "The Query: "}, "default_prompt_name": "query"}
    (tmp_path / "saved" / "config_sentence_transformers.json").write_text(json.dumps(prompts))
    expected = theirs(tmp_path / "saved", [*SENTENCES, "the long dog " * 30])
    encoder = load_encoder(tmp_path / "saved")
    assert np.allclose(encoder.encode([*SENTENCES, "the long dog " * 30]), expected, atol=1e-5)
    assert np.array_equal(encoder.encode(["A MAN"]), encoder.encode(["a man"]))
    save_encoder(encoder, tmp_path / "again")
    assert np.allclose(theirs(tmp_path / "again", SENTENCES), expected[:-1], atol=1e-5)


@pytest.mark.parametrize("family", ["t5", "xlnet", "bert-generation"])
def test_where_no_token_stands_before_a_sentence_the_mean_is_pooled(family: str, tmp_path: Path) -> None:
    folder = make_member(family, tmp_path / "model")
    encoder = load_encoder(folder)
    assert encoder.pooling == "mean"
    assert any("mean" in note for note in encoder.notes)
    chosen = load_encoder(folder, pooling="cls")
    assert chosen.pooling == "cls"
    assert any("takes that of a word" in note for note in chosen.notes)


def test_a_tokenizer_without_any_special_token_is_refused_with_what_to_do(tiny: Path, tmp_path: Path) -> None:
    shutil.copytree(tiny, tmp_path / "bare")
    for name in ("tokenizer_config.json", "special_tokens_map.json", "vocab.txt"):
        (tmp_path / "bare" / name).unlink(missing_ok=True)
    backend = Tokenizer(WordLevel({"a": 0, "man": 1, "dog": 2}, unk_token="a"))
    backend.pre_tokenizer = WhitespaceSplit()
    PreTrainedTokenizerFast(tokenizer_object=backend).save_pretrained(tmp_path / "bare")
    with pytest.raises(InputError, match=r"bare: its tokenizer has no special token, with which a batch could be padd"):
        load_encoder(tmp_path / "bare")
