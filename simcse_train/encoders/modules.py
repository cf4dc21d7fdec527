"""What a sentence-transformers folder adds to a model: modules, prompts, lower-casing, lengths.

`modules.json` lists the modules that a sentence passes through: the transformer, the pooling, and any of `Dense`,
`LayerNorm`, `Normalize` and `Dropout` after it. Each is applied, trained and saved again. A module or a setting that
cannot be is refused by its name, since an encoder without it would give other embeddings.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn.functional import normalize

from simcse_train.encoders.pooling import MODES
from simcse_train.errors import InputError, one_line

MODULES, PROMPTS, WEIGHTS = "modules.json", "config_sentence_transformers.json", "model.safetensors"
# Old releases named the file after the model's family.
SETTINGS = ("sentence_bert_config.json", "sentence_roberta_config.json", "sentence_distilbert_config.json",
            "sentence_camembert_config.json", "sentence_albert_config.json", "sentence_xlm-roberta_config.json",
            "sentence_xlnet_config.json")  # fmt: skip

# Returns the local path of a file of the encoder, or None where there is none.
Find = Callable[[str], Path | None]


class Dense(nn.Module):
    """A linear layer and an activation: (rows, in) -> (rows, out)."""

    def __init__(self, settings: Mapping[str, Any], activation: nn.Module) -> None:
        super().__init__()
        self.settings = dict(settings)
        self.size = int(settings["out_features"])
        self.linear = nn.Linear(int(settings["in_features"]), self.size, bias=bool(settings.get("bias", True)))
        self.activation_function = activation

    def forward(self, embeddings: Tensor) -> Tensor:
        """Return the projected embeddings (rows, out)."""
        projected: Tensor = self.activation_function(self.linear(embeddings))
        return projected


class LayerNorm(nn.Module):
    """Layer normalisation of embeddings (rows, size)."""

    def __init__(self, settings: Mapping[str, Any]) -> None:
        super().__init__()
        self.settings = dict(settings)
        self.size = int(settings["dimension"])
        self.norm = nn.LayerNorm(self.size)

    def forward(self, embeddings: Tensor) -> Tensor:
        """Return the normalised embeddings (rows, size)."""
        normalised: Tensor = self.norm(embeddings)
        return normalised


class Normalize(nn.Module):
    """Embeddings (rows, hidden) at length 1."""

    def forward(self, embeddings: Tensor) -> Tensor:
        """Return the embeddings divided by their length."""
        return normalize(embeddings)


@dataclass
class Folder:
    """A sentence-transformers folder as it was read; a plain model has none of it."""

    for_sentences: bool = False  # whether there are such files: few have them for a plain language model
    transformer: str = ""  # the sub-folder with the model
    pooling: str | None = None  # what its Pooling module says
    include_prompt: bool = True
    modules: list[nn.Module] = field(default_factory=list)  # after the pooling
    max_length: int | None = None
    lower_case: bool = False
    prompts: dict[str, Any] = field(default_factory=dict)  # all of config_sentence_transformers.json

    @property
    def prompt(self) -> str:
        """What stands before every sentence, unless the caller of sentence-transformers says otherwise."""
        name = self.prompts.get("default_prompt_name")
        return "" if name is None else str(self.prompts.get("prompts", {}).get(name) or "")


def read_folder(source: str, find: Find) -> Folder:
    """Return what the sentence-transformers files of an encoder say, nothing where it has none.

    Raises `InputError` for a file that is not of that format, and for what cannot be applied, trained and kept.
    """
    listed = _read_json(find, MODULES)
    if listed is None:  # a plain model; a pooling beside it is followed all the same
        return Folder(pooling=_pooling(source, _read_json(find, "1_Pooling/config.json"))[0])
    if not (isinstance(listed, list) and listed and all(isinstance(module, dict) for module in listed)):
        raise _refused(source, f"its {MODULES} is not a list of modules")
    found = Folder(for_sentences=True)
    for i, module in enumerate(listed):
        _add_module(found, source, find, i, module)
    found.prompts = _prompts(source, _read_json(find, PROMPTS))
    if found.prompt and not found.include_prompt:
        raise _refused(source, "its Pooling leaves the tokens of the prompt out (include_prompt false)")
    return found


def _add_module(found: Folder, source: str, find: Find, i: int, module: dict[str, Any]) -> None:
    reference, path = str(module.get("type", "")), str(module.get("path", ""))
    kind = reference.rsplit(".", 1)[-1]
    if not reference.startswith("sentence_transformers."):
        raise _refused(source, f"its module {reference!r} is code of its own, which is not run")
    if Path(path).is_absolute() or ".." in Path(path).parts:
        raise _refused(source, f"its module {kind} lies outside the folder ({path!r})")
    if module.get("kwargs"):
        raise _refused(source, f"its module {kind} takes {module['kwargs']!r} from the caller")
    prefix = f"{path}/" if path else ""
    if i == 0 and kind == "Transformer":
        found.transformer = path
        _apply_settings(found, source, next((s for name in SETTINGS if (s := _read_json(find, prefix + name))), None))
    elif i == 1 and kind == "Pooling":
        settings = _read_json(find, f"{prefix}config.json")
        if settings is None:
            raise _refused(source, f"its module Pooling has no {prefix}config.json, which says how to pool")
        found.pooling, found.include_prompt = _pooling(source, settings)
    elif i > 0 and kind == "Normalize":
        if not _works_on_embedding(_read_json(find, f"{prefix}config.json") or {}):
            raise _refused(source, "its module Normalize does more than divide the embedding by its length")
        found.modules.append(Normalize())
    elif i > 0 and kind == "Dropout":
        pass  # it acts in that library's training alone
    elif i > 1 and kind in ("Dense", "LayerNorm"):
        found.modules.append(_weighted(source, find, kind, prefix))
    else:
        raise _refused(source, f"its module {kind}, the {i + 1}. in {MODULES}, can't be trained here")


def _apply_settings(found: Folder, source: str, settings: object) -> None:
    if settings is None:
        return
    if not isinstance(settings, dict):
        raise _refused(source, f"its {SETTINGS[0]} is not a mapping")
    text = {"method": "forward", "method_output_name": "last_hidden_state"}
    usual: dict[str, tuple[Any, ...]] = {
        "transformer_task": ("feature-extraction",),
        "modality_config": ({"text": text},),
        "module_output_name": ("token_embeddings",),
    }
    free = ("max_seq_length", "do_lower_case", "unpad_inputs")
    for name, value in settings.items():
        nested = isinstance(value, dict) and not (value.keys() - {"trust_remote_code"})
        if name not in free and value not in usual.get(name, ()) and value is not None and not nested:
            raise _refused(source, f"its {SETTINGS[0]} sets {name} to {json.dumps(value)[:80]}")
    length, lower = settings.get("max_seq_length"), settings.get("do_lower_case") or False
    if not (length is None or (isinstance(length, int) and length > 0)) or not isinstance(lower, bool):
        raise _refused(source, f"max_seq_length {length!r} or do_lower_case {lower!r} in {SETTINGS[0]} makes no sense")
    found.max_length, found.lower_case = length, lower


def _pooling(source: str, settings: object) -> tuple[str | None, bool]:
    """Return the pooling that a Pooling module's config names, and whether it includes the prompt's tokens."""
    if settings is None:
        return None, True
    if not isinstance(settings, dict):
        raise _refused(source, "the config.json of its Pooling module is not a mapping")
    ours = {theirs: name for name, (theirs, _) in MODES.items()}
    if "pooling_mode" in settings:
        named = settings["pooling_mode"]
        modes = [str(mode) for mode in (named if isinstance(named, list) else [named])]
    else:
        flags = {flag: theirs for theirs, flag in MODES.values()}
        true = {key for key, value in settings.items() if key.startswith("pooling_mode_") and value}
        modes = [theirs for flag, theirs in flags.items() if flag in true] + sorted(true - flags.keys()) or ["mean"]
    unknown = [mode for mode in modes if mode not in ours]
    if unknown or not modes:
        raise _refused(source, f"its Pooling names {', '.join(unknown) or 'nothing'}, not one of {', '.join(ours)}")
    return "+".join(ours[mode] for mode in modes), bool(settings.get("include_prompt", True))


def _weighted(source: str, find: Find, kind: str, prefix: str) -> nn.Module:
    """Return a Dense or LayerNorm module with its weights."""
    settings = _read_json(find, f"{prefix}config.json")
    try:
        if not isinstance(settings, dict):
            raise ValueError("its config.json is missing or not a mapping")
        if kind == "LayerNorm":
            module: nn.Module = LayerNorm(settings)
        else:
            if settings.get("use_residual") or not _works_on_embedding(settings):
                raise ValueError("it does more than project the embedding")
            module = Dense(
                settings, _activation(settings.get("activation_function", "torch.nn.modules.activation.Tanh"))
            )
        path = find(prefix + WEIGHTS)
        if path is None:
            raise ValueError(f"{prefix}{WEIGHTS} is missing; weights must be safetensors files")
        module.load_state_dict(load_file(path))
    except (KeyError, ValueError, TypeError, RuntimeError, OSError, SafetensorError) as error:
        raise _refused(source, f"its module {kind} can't be used ({one_line(error)})") from None
    return module


def _works_on_embedding(settings: object) -> bool:
    """Say whether a module reads the embedding and puts its result in that place."""
    names = ("module_input_name", "module_output_name")
    return isinstance(settings, dict) and all(
        (settings.get(name) or "sentence_embedding") == "sentence_embedding" for name in names
    )


def _activation(name: str) -> nn.Module:
    """Return a new activation of `torch.nn` from its full name; raises `ValueError` for anything else."""
    made = getattr(torch.nn, str(name).rsplit(".", 1)[-1], None)
    known = str(name).startswith("torch.nn.modules.") and isinstance(made, type) and issubclass(made, nn.Module)
    if not known or made is None:
        raise ValueError(f"its activation {name!r} is none of torch.nn")
    activation: nn.Module = made()
    return activation


def _prompts(source: str, settings: object) -> dict[str, Any]:
    if settings is None:
        return {}
    if not isinstance(settings, dict):
        raise _refused(source, f"its {PROMPTS} is not a mapping")
    prompts, name = settings.get("prompts") or {}, settings.get("default_prompt_name")
    if not isinstance(prompts, dict) or not all(isinstance(prompt, str | None) for prompt in prompts.values()):
        raise _refused(source, f"the prompts in its {PROMPTS} are not texts under names")
    if name is not None and name not in prompts:
        raise _refused(source, f"its default prompt {name!r} is not among the prompts in {PROMPTS}")
    if settings.get("truncate_dim"):
        raise _refused(source, f"its {PROMPTS} cuts embeddings to {settings['truncate_dim']} values (truncate_dim)")
    if settings.get("model_type", "SentenceTransformer") != "SentenceTransformer":
        raise _refused(source, f"it is a {settings['model_type']}, not a SentenceTransformer")
    return settings


def _read_json(find: Find, name: str) -> object:
    """Return the content of a JSON file, or None where there is none; raises `InputError` if it is not JSON."""
    path = find(name)
    if path is None:
        return None
    try:
        content: object = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        reason = one_line(error)
        raise InputError(f"{path} can't be read as JSON ({reason}). Restore it from where the encoder came.") from None
    return content


def _refused(source: str, what: str) -> InputError:
    return InputError(
        f"The encoder {source} can't be used: {what}. Without that it would give other embeddings than "
        "sentence-transformers does with the same files. Choose another --model."
    )
