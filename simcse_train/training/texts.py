"""The texts that the settings of a run name."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from simcse_train import distributed
from simcse_train.config import TrainConfig
from simcse_train.data.corpus import Corpus, open_corpus
from simcse_train.data.files import one_file
from simcse_train.data.pairs import Pair, fingerprint, read_pairs
from simcse_train.data.training_pairs import TrainingPairs, open_training_pairs
from simcse_train.encoders.encoder import Encoder
from simcse_train.errors import InputError


@dataclass(frozen=True)
class Texts:
    """What a run reads: the text and the training pairs, at least one of them, and labelled pairs that score it."""

    corpus: Corpus | None
    training_pairs: TrainingPairs | None
    labelled_pairs: list[Pair] | None

    @property
    def fingerprints(self) -> tuple[str | None, str | None, str | None]:
        """Of the content of `--data`, `--pairs` and `--eval`."""
        of_text = self.corpus.fingerprint if self.corpus is not None else None
        of_pairs = self.training_pairs.fingerprint if self.training_pairs is not None else None
        return of_text, of_pairs, fingerprint(self.labelled_pairs)


def open_texts(
    config: TrainConfig, encoder: Encoder, labelled: list[Pair] | None = None, *, expected: str | None = None
) -> Texts:
    """Return what the settings name, beside the labelled pairs that were read; `expected` is the text's fingerprint."""
    pairs = None
    if config.pairs:
        _require_place(config.pairs, "--pairs")
        # Alone, the pairs are the text that --encoding is for; beside a text they may have another encoding.
        encodings = (None, config.encoding) if config.data else (config.encoding, None)
        pairs = open_training_pairs(
            Path(config.pairs), encoder.tokenizer, config.max_length, encodings[0], fallback_encoding=encodings[1]
        )
    if not config.data:
        return Texts(None, pairs, labelled)
    with distributed.first_on_each_machine():  # the others find the tokenised text in the cache
        corpus = open_corpus(
            config.data,
            config.text_column,
            encoder.tokenizer,
            config.max_length,
            expected=expected,
            encoding=config.encoding,
        )
    return Texts(corpus, pairs, labelled)


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
