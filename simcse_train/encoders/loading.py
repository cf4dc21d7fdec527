"""Load an encoder from a folder or by its name on the Hugging Face hub.

No code that comes with a model is run and nothing is unpickled: weights are safetensors, remote code stays off, and a
configuration that claims an absurd size is refused before memory is allocated.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import HfApi
from huggingface_hub.errors import RepositoryNotFoundError
from safetensors import SafetensorError
from transformers import AutoConfig, AutoModel, AutoTokenizer, PretrainedConfig
from transformers.utils.hub import cached_file

from simcse_train.config import STARTER
from simcse_train.encoders.encoder import Encoder, dropout_settings, max_positions
from simcse_train.encoders.probing import enable_packing
from simcse_train.encoders.saving import ENCODER
from simcse_train.encoders.tokenizer import SentenceTokenizer
from simcse_train.errors import InputError
from simcse_train.randomness import seeded

STARTER_FOLDER = Path(__file__).parent.parent / "starter"

# A configuration beyond these limits is a mistake or an attack: it would take all memory before a weight is read.
MAX_PARAMETERS = 20_000_000_000
MAX_LAYERS = 1_000


def load_encoder(
    name_or_path: str | Path, *, pooling: str = "auto", dropout: float | None = None, packed: bool = True
) -> Encoder:
    """Load a sentence encoder: `starter`, a folder (of a model, a checkpoint or a finished run) or a Hugging Face name.

    `pooling` auto follows the model's own sentence-transformers files, else takes cls. `dropout` replaces the model's
    own. With `packed` false, batches are padded even where the model can be packed. The encoder is in evaluation mode, in
    float32, on the CPU. Raises `InputError` if it cannot be loaded or used.
    """
    source = _find_source(str(name_or_path))
    local_only = _must_stay_offline(source)
    try:
        # No code of the model's own is run, and no pickled weights are read.
        config = AutoConfig.from_pretrained(source, trust_remote_code=False, local_files_only=local_only)
        _check_sizes(config, source)
        if dropout is not None:
            for name in dropout_settings(config):
                setattr(config, name, dropout)
        tokenizer = AutoTokenizer.from_pretrained(source, trust_remote_code=False, local_files_only=local_only)
        with seeded(0):  # transformers draws weights before it reads them
            model, report = AutoModel.from_pretrained(
                source,
                config=config,
                trust_remote_code=False,
                local_files_only=local_only,
                use_safetensors=True,
                dtype=torch.float32,
                output_loading_info=True,
            )
    except (OSError, ValueError, KeyError, TypeError, RuntimeError, SafetensorError, ImportError) as error:
        raise InputError(_loading_failed(name_or_path, source, local_only, error)) from None
    missing = sorted(key for key in report["missing_keys"] if "pooler" not in key)
    if missing:
        raise InputError(
            f"The encoder {name_or_path} lacks weights of a {config.model_type} encoder, {missing[0]!r} the first of "
            f"{len(missing)}. The files are those of another kind of model, or damaged: fetch or export it again."
        )
    if len(missing) < len(report["missing_keys"]):
        model.pooler = None  # nobody trained it, and an export must not carry random weights
    max_length = min(max_positions(model), int(getattr(tokenizer, "model_max_length", 512)))
    own = _read_json(source, "sentence_bert_config.json", local_only).get("max_seq_length")
    resolved = _pooling_of(source, local_only) if pooling == "auto" else pooling
    max_length = min(max_length, int(own)) if own else max_length
    encoder = Encoder(model, SentenceTokenizer(tokenizer), resolved, max_length)
    if packed:
        enable_packing(encoder)
    return encoder


def _find_source(name_or_path: str) -> str:
    """Return the folder behind a name, or the name itself where it is one of Hugging Face's."""
    if name_or_path == STARTER:
        return str(STARTER_FOLDER)
    path = Path(name_or_path).expanduser()
    for folder in (path, path / ENCODER):
        if (folder / "config.json").is_file():
            return str(folder)
    if path.exists():
        raise InputError(
            f"The folder {name_or_path} holds no encoder: there is no config.json in it. Give the folder that save_pretrained "
            "or simcse-train wrote."
        )
    if len(path.parts) > 2 or path.is_absolute() or name_or_path.startswith((".", "~")):
        raise InputError(
            f"The encoder {name_or_path}: there is no such folder. Check the path, or use --model {STARTER}."
        )
    return name_or_path


def _must_stay_offline(source: str) -> bool:
    """Say whether only local files can be used. One short question spares the user a minute of retries."""
    if Path(source).is_dir():
        return True
    try:
        HfApi().model_info(source, timeout=5)
    except RepositoryNotFoundError:
        return False
    except Exception:  # whatever keeps the hub from answering: no network, a proxy, offline mode
        return True
    return False


def _loading_failed(name: str | Path, source: str, local_only: bool, error: Exception) -> str:
    if Path(source).is_dir():
        reason = " ".join(str(error).split())[:300]
        return f"The encoder {name} can't be loaded as an encoder ({reason}). Weights must be safetensors files."
    if local_only:
        return (
            f"The encoder {name} is neither a folder here nor in the local Hugging Face cache, and the hub can't be reached. "
            f"Give the path of a downloaded model, go online, or use the bundled encoder: --model {STARTER}."
        )
    reason = " ".join(str(error).split())[:300]
    return f"The encoder {name} can't be had from the Hugging Face hub ({reason}). Check the name, or use --model {STARTER}."


def _check_sizes(config: PretrainedConfig, source: str) -> None:
    """Refuse what is no encoder, and a configuration whose claimed size no machine holds, before any memory is taken."""
    if config.is_encoder_decoder or getattr(config, "is_decoder", False):
        raise InputError(
            f"The encoder {source} is a {config.model_type} with a decoder; SimCSE trains encoders such as BERT."
        )
    number = {name: value for name, value in config.to_dict().items() if isinstance(value, int)}
    hidden = int(getattr(config, "hidden_size", 0) or 0)
    layers = int(getattr(config, "num_hidden_layers", 0) or 0)
    inner = max(number.get("intermediate_size", 0), number.get("hidden_dim", 0), hidden)
    tables = number.get("vocab_size", 0) + number.get("max_position_embeddings", 0) + number.get("type_vocab_size", 0)
    parameters = hidden * (tables + layers * (4 * hidden + 2 * inner))
    if layers > MAX_LAYERS or parameters > MAX_PARAMETERS or min(hidden, layers, parameters) <= 0:
        raise InputError(
            f"The encoder {source}: its config.json claims {layers} layers of {hidden} and about {parameters:,} weights, which is "
            "no usable encoder. The file is damaged, or not what it says."
        )


def _read_json(source: str, name: str, local_only: bool) -> dict[str, Any]:
    """Return a JSON file of the model as a dictionary (a list under its indices), empty where there is none."""
    path = cached_file(
        source,
        name,
        local_files_only=local_only,
        _raise_exceptions_for_missing_entries=False,
        _raise_exceptions_for_connection_errors=False,
    )
    if path is None:
        return {}
    content = json.loads(Path(path).read_text(encoding="utf-8"))
    return {str(i): item for i, item in enumerate(content)} if isinstance(content, list) else content


def _pooling_of(source: str, local_only: bool) -> str:
    """Return the pooling that the model's sentence-transformers files name; cls, the paper's choice, where it has none."""
    modules = [m["type"].rsplit(".", 1)[-1] for m in _read_json(source, "modules.json", local_only).values()]
    settings = _read_json(source, "1_Pooling/config.json", local_only)
    if not settings:
        return "cls"
    known = {"pooling_mode_cls_token": "cls", "pooling_mode_mean_tokens": "mean"}
    modes = {
        known.get(key, key) for key, value in settings.items() if key.startswith("pooling_mode_") and value is True
    }
    modes |= {settings["pooling_mode"]} if "pooling_mode" in settings else set()
    if "Dense" in modules or len(modes) != 1 or not modes <= {"cls", "mean"}:
        raise InputError(
            f"The encoder {source} pools with {' and '.join(sorted(modes)) or 'nothing'}"
            f"{' and a dense layer' if 'Dense' in modules else ''}; only cls and mean can be trained here. "
            "Choose one with --pooling."
        )
    return modes.pop()
