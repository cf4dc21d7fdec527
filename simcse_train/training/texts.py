"""The texts that the settings of a run name."""

from __future__ import annotations

from pathlib import Path

from simcse_train import distributed
from simcse_train.config import TrainConfig
from simcse_train.data.corpus import Corpus, open_corpus
from simcse_train.data.files import one_file
from simcse_train.data.pairs import Pair, read_pairs
from simcse_train.data.training_pairs import TrainingPairs, open_training_pairs
from simcse_train.encoders.encoder import Encoder
from simcse_train.errors import InputError


def open_texts(
    config: TrainConfig, encoder: Encoder, expected: str | None = None
) -> tuple[Corpus | None, TrainingPairs | None]:
    """Return the text and the training pairs that the settings name; `expected` is the text's fingerprint."""
    pairs = None
    if config.pairs:
        _require_place(config.pairs, "--pairs")
        # Alone, the pairs are the text that --encoding is for; beside a text they may have another encoding.
        encodings = (None, config.encoding) if config.data else (config.encoding, None)
        pairs = open_training_pairs(
            Path(config.pairs), encoder.tokenizer, config.max_length, encodings[0], fallback_encoding=encodings[1]
        )
    if not config.data:
        return None, pairs
    with distributed.first_on_each_machine():  # the others find the tokenised text in the cache
        corpus = open_corpus(
            config.data,
            config.text_column,
            encoder.tokenizer,
            config.max_length,
            expected=expected,
            encoding=config.encoding,
        )
    return corpus, pairs


def labelled_pairs(config: TrainConfig) -> list[Pair] | None:
    """Return the labelled pairs of `--eval`, if there are any; raises `InputError`."""
    if config.eval is None:
        return None
    _require_place(config.eval, "--eval")
    return read_pairs(one_file(Path(config.eval), "--eval"), "--eval", fallback_encoding=config.encoding)


def _require_place(path: str, option: str) -> None:
    """Raise `InputError` if a file of pairs is gone."""
    if not Path(path).exists():
        raise InputError(f"{option} {path}: there is no such file. Check the path; a resumed run may be given the new.")
