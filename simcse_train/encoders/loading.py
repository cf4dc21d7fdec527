"""Load an encoder from a folder or by its name on the Hugging Face hub.

No code that comes with a model is run and nothing is unpickled: weights are safetensors, remote code stays off, and a
configuration that claims an absurd size is refused before memory is allocated. All that can be wrong with an encoder is
found here: the files come from elsewhere, so whatever transformers raises on them is reported as a fault of the files.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from tokenizers import normalizers
from transformers import (
    AutoConfig,
    AutoTokenizer,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.models.auto.auto_mappings import IMAGE_PROCESSOR_MAPPING_NAMES, PROCESSOR_MAPPING_NAMES

from simcse_train.encoders.encoder import UNLIMITED, Encoder, dropout_settings, input_embeddings, max_positions
from simcse_train.encoders.modules import MODULES, Folder, read_folder
from simcse_train.encoders.pooling import MODES
from simcse_train.encoders.probing import SHORT, check_shortest, choose_computation, first_and_last_know
from simcse_train.encoders.sources import STARTER_FOLDER, Source
from simcse_train.encoders.tokenizer import SentenceTokenizer
from simcse_train.encoders.weights import ENCODERS, load_model, require_finite_weights
from simcse_train.errors import InputError

__all__ = ["STARTER_FOLDER", "load_encoder"]

# A configuration beyond these limits is a mistake or an attack: it would take all memory before a weight is read.
MAX_PARAMETERS = 20_000_000_000
MAX_LAYERS = 1_000
MAX_NUMBER = 100_000_000


def load_encoder(
    name_or_path: str | Path, *, pooling: str = "auto", dropout: float | None = None, packed: bool = True
) -> Encoder:
    """Load a sentence encoder: `starter`, a folder (of a model, a checkpoint or a finished run) or a Hugging Face name.

    `pooling` auto follows the model's own sentence-transformers files; without them it is cls, last for a model that
    reads from left to right, and mean where the tokenizer puts no token before a sentence. `dropout` replaces the
    model's own. With `packed` false, batches are padded even where the model can be packed. The encoder is in
    evaluation mode, in float32, on the CPU, and gives what transformers gives for the same files. Raises `InputError`
    if it cannot be loaded or used.
    """
    if pooling != "auto" and not set(pooling.split("+")) <= MODES.keys():
        raise InputError(f"--pooling {pooling} is no way to pool. Use auto, cls, mean or last.")
    source = Source(str(name_or_path))
    with _explained(source):
        found = read_folder(source.name, source.find)
        source.transformer = found.transformer
        source.refuse_adapter()
        config = AutoConfig.from_pretrained(source.place, **source.arguments)
        _check_config(config, source.name)
        if dropout is not None:
            for name in dropout_settings(config):
                setattr(config, name, dropout)
        tokenizer = AutoTokenizer.from_pretrained(source.place, **source.arguments)
        _complete_tokenizer(tokenizer, found, source.name)
        model = load_model(source, config)
        reading = SentenceTokenizer(tokenizer, found.prompt)
        encoder = Encoder(model, reading, "cls", _max_length(model, tokenizer, found), folder=found)
        encoder.source = source.name
        encoder.pooling = _choose_pooling(encoder, pooling, source.name)
        _check_tokens(encoder, source.name)
        require_finite_weights(encoder, source.name)
        choose_computation(encoder, source.name, packed=packed)
        check_shortest(encoder, source.name)
        _check_sides(encoder)
        _check_embeddings(encoder, source.name)
    return encoder


@contextmanager
def _explained(source: Source) -> Iterator[None]:
    """Turn whatever is raised on files that came from elsewhere into an `InputError`."""
    try:
        yield
    except (InputError, KeyboardInterrupt, SystemExit, MemoryError):
        raise
    except BaseException as error:  # a panic of the tokenizers library is no Exception
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        raise source.explain(error) from None


def _check_config(config: PretrainedConfig, name: str) -> None:
    """Refuse what is no encoder, and a configuration whose size no machine holds, before memory is taken."""
    kind = config.model_type
    if kind not in ENCODERS and (config.is_encoder_decoder or getattr(config, "is_decoder", False)):
        raise InputError(
            f"The encoder {name} is of the type {kind}, with a decoder; SimCSE trains encoders such as BERT."
        )
    if (
        config.get_text_config() is not config
        or kind in PROCESSOR_MAPPING_NAMES
        or kind in IMAGE_PROCESSOR_MAPPING_NAMES
    ):
        raise InputError(
            f"The encoder {name} is of the type {kind}, which reads more than text; give an encoder of text such as "
            "BERT."
        )
    number = {key: value for key, value in config.to_dict().items() if isinstance(value, int)}
    hidden = int(getattr(config, "hidden_size", 0) or 0)
    layers = int(getattr(config, "num_hidden_layers", 0) or 0)
    if not (hidden and layers):
        raise InputError(
            f"The encoder {name} is of the type {kind}, without a hidden size or layers in its config.json: it is no "
            "transformer encoder of text. Give one such as BERT."
        )
    inner = max(number.get("intermediate_size", 0), number.get("hidden_dim", 0), hidden)
    tables = number.get("vocab_size", 0) + number.get("max_position_embeddings", 0) + number.get("type_vocab_size", 0)
    parameters = hidden * (tables + layers * (4 * hidden + 2 * inner))
    largest = max(number, key=lambda key: abs(number[key]))
    if layers > MAX_LAYERS or parameters > MAX_PARAMETERS or min(hidden, layers, parameters) <= 0:
        raise InputError(
            f"The encoder {name}: its config.json claims {layers} layers of {hidden} and about {parameters:,} "
            "weights, which is no usable encoder. The file is damaged, or not what it says."
        )
    if abs(number[largest]) > MAX_NUMBER:
        raise InputError(
            f"The encoder {name}: its config.json says {largest} {number[largest]:,}, which is no usable encoder. The "
            "file is damaged, or not what it says."
        )
    # What is returned beside the states: packed attention has none of it, and a tuple would hide the states.
    config.return_dict, config.output_attentions, config.output_hidden_states = True, False, False
    # BigBird: which of the two acts depends on what it read first.
    if getattr(config, "attention_type", None) == "block_sparse":
        config.attention_type = "original_full"


def _complete_tokenizer(tokenizer: PreTrainedTokenizerBase, found: Folder, name: str) -> None:
    """Lower-case as the folder says, and name a padding token; raises `InputError` if there is none to be had."""
    if tokenizer.pad_token_id is None:
        names = ("eos_token", "unk_token", "sep_token", "bos_token")
        tokenizer.pad_token = next((token for name in names if (token := getattr(tokenizer, name)) is not None), None)
        if tokenizer.pad_token is None:
            raise InputError(
                f"The encoder {name}: its tokenizer has no special token, with which a batch could be padded. Add "
                "one (tokenizer.add_special_tokens, model.resize_token_embeddings), and save both again."
            )
    if not found.lower_case:
        return
    if not tokenizer.is_fast:
        tokenizer.do_lower_case = True
        return
    backend = tokenizer.backend_tokenizer
    if '"Lowercase"' in str(backend.normalizer) or '"lowercase":true' in backend.to_str():
        return
    before = [] if backend.normalizer is None else [backend.normalizer]
    backend.normalizer = normalizers.Sequence([normalizers.Lowercase(), *before])


def _max_length(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, found: Folder) -> int:
    """Return after how many tokens a sentence is cut where nobody asks for less."""
    positions, own = max_positions(model), tokenizer.model_max_length
    limits = [positions] if positions < UNLIMITED else []
    if found.max_length is not None:  # stands in place of the tokenizer's own limit
        limits.append(found.max_length)
    elif isinstance(own, int) and 0 < own < UNLIMITED:
        limits.append(own)
    return min(limits or [512])


def _choose_pooling(encoder: Encoder, wanted: str, name: str) -> str:
    """Return the pooling to use; raises `InputError` if its token knows nothing of the sentence."""
    is_open = wanted == "auto" and encoder.folder.pooling is None
    if is_open and encoder.folder.for_sentences:
        raise InputError(
            f"The encoder {name} has a {MODULES} without a Pooling module, which says how to pool. Restore it, or name "
            "the pooling with --pooling."
        )
    chosen = (encoder.folder.pooling or "cls") if wanted == "auto" else wanted
    first, last = first_and_last_know(encoder)
    if not (first or last):
        raise InputError(
            f"The encoder {name}, of the type {encoder.model.config.model_type}, gives each token a state that "
            "depends on that token alone: its attention does nothing on this machine. Choose another --model."
        )
    if not first and is_open:
        encoder.notes.append("This encoder reads from left to right: the last token's state is the embedding.")
        return "last"
    if not first and "cls" in chosen.split("+"):
        raise InputError(
            f"The encoder {name} reads from left to right, so that its first token knows nothing of the sentence, and "
            "pooling cls would give all sentences one embedding. Use --pooling last or --pooling mean."
        )
    if "cls" in chosen.split("+") and not encoder.tokenizer.has_first_token:
        begins = "This encoder's tokenizer puts no token such as [CLS] before a sentence: "
        encoder.notes.append(
            begins + ("the embedding is the mean of all states." if is_open else "pooling cls takes that of a word.")
        )
        return "mean" if is_open else chosen
    return chosen


def _check_tokens(encoder: Encoder, name: str) -> None:
    """Raise `InputError` if a sentence can have a token that has no row in the embeddings."""
    embeddings = input_embeddings(encoder.model)
    largest = encoder.tokenizer.largest_id
    if embeddings is not None and largest >= embeddings.num_embeddings:
        token = encoder.tokenizer.pretrained.convert_ids_to_tokens(largest)
        raise InputError(
            f"The encoder {name}: its tokenizer has the token {token!r} with the number {largest}, but the model has "
            f"embeddings for {embeddings.num_embeddings} tokens. If you added tokens, call "
            "model.resize_token_embeddings(len(tokenizer)) and save the model again."
        )


def _check_sides(encoder: Encoder) -> None:
    """Let the tokenizer pad on the right: on the left, absolute positions would depend on the padding."""
    tokenizer = encoder.tokenizer.pretrained
    if tokenizer.padding_side == "left":
        tokenizer.padding_side = "right"


def _check_embeddings(encoder: Encoder, name: str) -> None:
    """Raise `InputError` if embeddings are not finite, or different sentences have the same one."""
    rows = encoder.encode(SHORT, normalized=False)
    if not np.isfinite(rows).all():
        raise InputError(
            f"The encoder {name} gives embeddings that are not finite numbers. Its weights are damaged or too large: "
            "download or export it again, or choose another --model."
        )
    if np.abs(rows - rows[0]).max() < 1e-6 * max(1.0, float(np.abs(rows).max())):
        raise InputError(
            f"The encoder {name} with pooling {encoder.pooling} gives different sentences one and the same embedding, "
            "so that nothing can be learned from it. Try another --pooling, or choose another --model."
        )
