"""Small tokenizers of the kinds that encoder families bring, trained on the example text.

Byte-level BPE (RoBERTa, GPT-2), SentencePiece's unigram model (XLM-R, ALBERT, T5) and BPE with single bytes for what is
unknown (Gemma, Mistral). `OWN` says which family has which; all others have BERT's WordPiece, also those whose own
tokenizer reads proteins (ESM) or needs a package that is not installed (sacremoses for XLM and FlauBERT, rjieba for
RoFormer).
"""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from tokenizers.processors import TemplateProcessing
from transformers import (
    AlbertTokenizer,
    BertGenerationTokenizer,
    BertTokenizer,
    BigBirdTokenizer,
    CamembertTokenizer,
    CLIPTokenizer,
    DebertaTokenizer,
    DebertaV2Tokenizer,
    FNetTokenizer,
    GemmaTokenizer,
    GPT2Tokenizer,
    LlamaTokenizer,
    LukeTokenizer,
    MPNetTokenizer,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
    Qwen2Tokenizer,
    ReformerTokenizer,
    RemBertTokenizer,
    RobertaTokenizer,
    SplinterTokenizer,
    T5Tokenizer,
    XLMRobertaTokenizer,
    XLNetTokenizer,
)

from tests.conftest import EXAMPLES, write_vocabulary

PIECES = 400
ROBERTA = ("<s>", "<pad>", "</s>", "<unk>", "<mask>")


@cache
def example_lines() -> list[str]:
    """Return the lines of the example text, and some with letters and signs that it does not have."""
    others = ["“Naïve” café: 3.5 % of 1871?! (No; can't.)", "一只猫坐在垫子上。", "[CLS] <s> </s> {x} & @ # $"]
    return [*(EXAMPLES / "sentences.txt").read_text(encoding="utf-8").splitlines(), *others]


@cache
def byte_level() -> tuple[dict[str, int], list[Any]]:
    """Return the vocabulary and the merges of a byte-level BPE."""
    return _trained(pre_tokenizers.ByteLevel(add_prefix_space=False), pre_tokenizers.ByteLevel.alphabet())


@cache
def word_ends() -> tuple[dict[str, int], list[Any]]:
    """Return those of a BPE that marks the ends of words, as CLIP's."""
    backend = Tokenizer(models.BPE(end_of_word_suffix="</w>"))
    backend.normalizer = normalizers.Lowercase()
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=2 * PIECES + 256, end_of_word_suffix="</w>", initial_alphabet=alphabet, show_progress=False
    )
    return _learned(backend, trainer)


@cache
def with_bytes() -> tuple[dict[str, int], list[Any]]:
    """Return those of a BPE over whole texts, whose spaces are `▁`, as Gemma's and Mistral's."""
    return _trained(pre_tokenizers.Metaspace(prepend_scheme="never"), [])


@cache
def unigram() -> tuple[tuple[str, float], ...]:
    """Return the pieces of a unigram model with their scores, without special tokens."""
    backend = Tokenizer(models.Unigram())
    backend.pre_tokenizer = pre_tokenizers.Metaspace()
    backend.train_from_iterator(
        example_lines(), trainers.UnigramTrainer(vocab_size=PIECES, unk_token="<unk>", show_progress=False)
    )
    found = sorted(backend.get_vocab().items(), key=lambda item: item[1])
    return tuple((piece, -3.0 - number / 100) for piece, number in found if piece != "<unk>")


def _trained(before: Any, alphabet: list[str]) -> tuple[dict[str, int], list[Any]]:
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = before
    size = PIECES + len(alphabet)
    return _learned(backend, trainers.BpeTrainer(vocab_size=size, initial_alphabet=alphabet, show_progress=False))


def _learned(backend: Tokenizer, trainer: Any) -> tuple[dict[str, int], list[Any]]:
    backend.train_from_iterator(example_lines(), trainer)
    model = json.loads(backend.to_str())["model"]
    return model["vocab"], [tuple(merge) for merge in model["merges"]]


def _numbered(special: tuple[str, ...], pieces: dict[str, int], last: tuple[str, ...] = ()) -> dict[str, int]:
    """Return a vocabulary of special tokens, then pieces by their numbers, then further special tokens."""
    tokens = [*special, *sorted(pieces, key=lambda piece: pieces[piece]), *last]
    return {token: i for i, token in enumerate(tokens)}


def _byte_level(kind: Any, special: tuple[str, ...], last: tuple[str, ...] = (), **settings: Any) -> Any:
    def make(folder: Path, length: int) -> Any:
        vocabulary, merges = byte_level()
        return kind(
            vocab=_numbered(special, vocabulary, last), merges=list(merges), model_max_length=length, **settings
        )

    return make


def _unigram(kind: Any, special: tuple[str, ...], last: tuple[str, ...] = (), **settings: Any) -> Any:
    def make(folder: Path, length: int) -> Any:
        vocabulary = [*((token, 0.0) for token in special), *unigram(), *((token, 0.0) for token in last)]
        return kind(vocab=vocabulary, model_max_length=length, **settings)

    return make


def _template(begin: str, end: str) -> Any:
    """Return a maker of a tokenizer without a class of its own, as ModernBERT's and EuroBERT's."""

    def make(folder: Path, length: int) -> Any:
        vocabulary, merges = byte_level()
        numbered = _numbered((), vocabulary, (begin, end, "[PAD]", "[UNK]", "[MASK]"))
        backend = Tokenizer(models.BPE(vocab=numbered, merges=list(merges)))
        backend.normalizer = normalizers.NFC()
        backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        backend.decoder = decoders.ByteLevel()
        around = [(token, numbered[token]) for token in (begin, end)]
        backend.post_processor = TemplateProcessing(single=f"{begin} $A {end}", special_tokens=around)
        return PreTrainedTokenizerFast(
            tokenizer_object=backend, cls_token=begin, sep_token=end, pad_token="[PAD]", unk_token="[UNK]",
            mask_token="[MASK]", model_max_length=length, model_input_names=["input_ids", "attention_mask"],
        )  # fmt: skip

    return make


def _with_bytes(kind: Any, special: tuple[str, ...], **settings: Any) -> Any:
    def make(folder: Path, length: int) -> Any:
        vocabulary, merges = with_bytes()
        singles = tuple(f"<0x{byte:02X}>" for byte in range(256))
        return kind(
            vocab=_numbered((*special, *singles), vocabulary), merges=list(merges), model_max_length=length, **settings
        )

    return make


def _clip(folder: Path, length: int) -> Any:
    vocabulary, merges = word_ends()
    alphabet = dict.fromkeys((f"{letter}</w>" for letter in sorted(pre_tokenizers.ByteLevel.alphabet())), 10**6)
    numbered = _numbered((), alphabet | vocabulary, ("<|startoftext|>", "<|endoftext|>"))
    return CLIPTokenizer(vocab=numbered, merges=list(merges), model_max_length=length)


def _reformer(folder: Path, length: int) -> Any:
    vocabulary, merges = with_bytes()
    numbered = _numbered(("<unk>", "</s>", "<s>", "<pad>"), vocabulary)
    return ReformerTokenizer(vocab=numbered, merges=list(merges), pad_token="<pad>", model_max_length=length)


def _luke(folder: Path, length: int) -> Any:
    entities = {"[PAD]": 0, "[UNK]": 1, "[MASK]": 2, "[MASK2]": 3}
    make = _byte_level(LukeTokenizer, ROBERTA[:4], ("<mask>",), entity_vocab=entities)
    return make(folder, length)


def _rembert(folder: Path, length: int) -> Any:
    tokenizer = _unigram(RemBertTokenizer, ("<pad>", "<unk>", "[CLS]", "[SEP]"), ("[MASK]",))(folder, length)
    around = [("[CLS]", 2), ("[SEP]", 3)]  # the class leaves this to the tokenizer.json of a model
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(single="[CLS] $A [SEP]", special_tokens=around)
    return tokenizer


def _bert_generation(folder: Path, length: int) -> Any:
    import sentencepiece

    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(example_lines()), model_writer=model, vocab_size=PIECES, pad_id=0, unk_id=3, bos_id=2,
        eos_id=1, hard_vocab_limit=False, minloglevel=2,
    )  # fmt: skip
    (folder / "spiece.model").write_bytes(model.getvalue())
    return BertGenerationTokenizer(str(folder / "spiece.model"), model_max_length=length)


def _mpnet(folder: Path, length: int) -> Any:
    from tests.encoders.families import mpnet_vocabulary

    return MPNetTokenizer(mpnet_vocabulary(folder), model_max_length=length)


def _wordpiece(kind: Any, *more: str) -> Any:
    def make(folder: Path, length: int) -> Any:
        path = write_vocabulary(folder)
        path.write_text(path.read_text(encoding="utf-8") + "".join(f"{token}\n" for token in more), encoding="utf-8")
        return kind(str(path), do_lower_case=True, model_max_length=length)

    return make


BERT = _wordpiece(BertTokenizer)
ALBERT = ("<pad>", "<unk>", "[CLS]", "[SEP]", "[MASK]")
MODERN = _template("[CLS]", "[SEP]")

# Family -> what makes its own kind of tokenizer.
OWN: dict[str, Callable[[Path, int], Any]] = {
    **dict.fromkeys(
        ("roberta", "roberta-prelayernorm", "data2vec-text", "ibert", "lilt", "longformer", "mra"),
        _byte_level(RobertaTokenizer, ROBERTA[:4], ("<mask>",)),
    ),
    "deberta": _byte_level(DebertaTokenizer, ("[PAD]", "[CLS]", "[SEP]", "[UNK]"), ("[MASK]",)),
    "luke": _luke,
    "gpt2": _byte_level(GPT2Tokenizer, (), ("<|endoftext|>",)),
    **dict.fromkeys(
        ("qwen2", "qwen3", "openai_privacy_filter"), _byte_level(Qwen2Tokenizer, (), ("<|endoftext|>", "<|im_end|>"))
    ),
    **dict.fromkeys(("modernbert", "modernbert-decoder", "ultrabert"), MODERN),
    "eurobert": _template("<|begin_of_text|>", "<|end_of_text|>"),
    "clip_text_model": _clip,
    **dict.fromkeys(
        ("xlm-roberta", "xlm-roberta-xl", "xmod", "gte", "jina_embeddings_v3"),
        _unigram(XLMRobertaTokenizer, ROBERTA[:4], ("<mask>",)),
    ),
    **dict.fromkeys(("albert", "nystromformer", "yoso"), _unigram(AlbertTokenizer, ALBERT)),
    "fnet": _unigram(FNetTokenizer, ALBERT),
    "big_bird": _unigram(BigBirdTokenizer, ("<pad>", "</s>", "<s>", "<unk>", "[SEP]", "[MASK]", "[CLS]")),
    "camembert": _unigram(
        CamembertTokenizer, ("<s>NOTUSED", "<pad>", "</s>NOTUSED", "<unk>", "<s>", "</s>"), ("<mask>",)
    ),
    "deberta-v2": _unigram(DebertaV2Tokenizer, ("[PAD]", "[CLS]", "[SEP]", "[UNK]"), ("[MASK]",), unk_id=3),
    "rembert": _rembert,
    "xlnet": _unigram(XLNetTokenizer, ("<unk>", "<s>", "</s>", "<cls>", "<sep>", "<pad>", "<mask>")),
    **dict.fromkeys(("t5", "mt5", "umt5"), _unigram(T5Tokenizer, ("<pad>", "</s>", "<unk>"), extra_ids=4)),
    **dict.fromkeys(
        ("gemma3_text", "embedding_gemma2_text"),
        _with_bytes(
            GemmaTokenizer,
            ("<pad>", "<eos>", "<bos>", "<unk>", "<mask>"),
            add_bos_token=True,
            add_eos_token=True,
        ),
    ),
    "mistral": _with_bytes(LlamaTokenizer, ("<unk>", "<s>", "</s>"), add_bos_token=True),
    "reformer": _reformer,
    "bert-generation": _bert_generation,
    "mpnet": _mpnet,
    "splinter": _wordpiece(SplinterTokenizer, "[QUESTION]"),
}


def make_tokenizer(family: str, folder: Path, length: int) -> PreTrainedTokenizerBase:
    """Return a tokenizer of a family's own kind, which cuts at `length` tokens; it may write files to `folder`."""
    return OWN.get(family, BERT)(folder, length)  # type: ignore[no-any-return]
