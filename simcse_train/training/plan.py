"""What the settings mean for this encoder on this machine, checked before anything is computed."""

from __future__ import annotations

import math
from pathlib import Path

import torch

from simcse_train import distributed, launcher
from simcse_train.config import STARTER, TrainConfig, choices, objective_setting, option
from simcse_train.data import hub
from simcse_train.data.batches import Batches, held_out_sentences
from simcse_train.data.files import require_utf8
from simcse_train.data.order import LATEST
from simcse_train.data.views import Repetition
from simcse_train.encoders.encoder import Encoder, dropout_settings
from simcse_train.encoders.probing import is_deterministic, is_repeatable
from simcse_train.errors import InputError
from simcse_train.evaluation.diagnosis import Diagnosis, recommend, recommend_for_pairs
from simcse_train.runs.folder import check_space, keep_standard_input
from simcse_train.training.optimizer import peak_rate
from simcse_train.training.texts import Texts

FEWEST_STEPS = 40  # of a run on pairs alone: 200 pairs are four batches, and one pass through them changes nothing


def resolve(config: TrainConfig, encoder: Encoder, run: Path) -> TrainConfig:
    """Replace every auto by what it means here, and every path by an absolute one.

    Raises `InputError` where a setting does not fit the encoder or the machine.
    """
    if config.max_length > encoder.max_positions:
        raise InputError(
            f"--max-length {config.max_length} is beyond the {encoder.max_positions} positions of {config.model}. Use "
            f"at most {encoder.max_positions}."
        )
    if is_deterministic(encoder):
        raise InputError(_without_noise(config, encoder))
    if not is_repeatable(encoder):
        raise InputError(
            f"--model {config.model} draws noise that no seed decides (it is of the type "
            f"{encoder.model.config.model_type}), so that its run could not be resumed or repeated. Choose another "
            "--model."
        )
    if encoder.tokenizer.special_tokens >= config.max_length:
        raise InputError(
            f"--max-length {config.max_length} leaves no token for the sentence: the prompt of {config.model} and the "
            f"special tokens take {encoder.tokenizer.special_tokens}. Use at least "
            f"{encoder.tokenizer.special_tokens + 8}."
        )
    device = find_device(config.device)
    if config.kernels == "compile" and device != "cuda":
        raise InputError(
            f"--kernels compile is for a CUDA GPU, not {device}. Leave it out: what is fastest here is found by itself."
        )
    data = [
        distributed.from_main(lambda: str(keep_standard_input(run).resolve())) if entry == "-" else lasting(entry)
        for entry in dict.fromkeys(config.data)  # standard input can be read once
    ]
    is_folder = config.model != STARTER and Path(config.model).expanduser().exists()
    if config.max_length > encoder.max_length:
        encoder.notes.append(
            f"This encoder's own files cut sentences at {encoder.max_length} tokens, and so will the export. Training "
            f"sees {config.max_length}."
        )
    resolved = config.model_copy(
        update={
            "data": data,
            "output": str(run),
            "model": absolute(config.model) if is_folder else config.model,
            "eval": absolute(config.eval) if config.eval else None,
            "pairs": absolute(config.pairs) if config.pairs else None,
            # A concatenation can be named by the model's files alone.
            "pooling": encoder.pooling if encoder.pooling in choices(TrainConfig.model_fields["pooling"]) else "auto",
            "projection": {"auto": "on" if encoder.pooling == "cls" else "off"}.get(
                config.projection, config.projection
            ),
            "device": device,
            "precision": find_precision(config.precision, device, encoder.float32_only),
        }
    )
    return resolved if config.objective == "auto" else _with_defaults(resolved)


def _with_defaults(config: TrainConfig) -> TrainConfig:
    """Return the settings with what `--objective auto` may choose, as it is where nothing else is chosen."""
    defaults = {"learning_rate": peak_rate(config), "temperature": objective_setting(config, "temperature")}
    return config.model_copy(update=defaults)


def require_own_settings(config: TrainConfig, encoder: Encoder) -> None:
    """Raise `InputError` if an encoder from Python is frozen, or has another pooling or dropout than the settings."""
    if not any(parameter.requires_grad for parameter in encoder.model.parameters()):
        raise InputError(
            "All weights of the encoder that is given are frozen, and nothing can be trained. Call "
            "encoder.requires_grad_(True) before."
        )
    rates = set(dropout_settings(encoder.model.config).values())
    for name, own in (("pooling", {encoder.pooling, "auto"}), ("dropout", rates | {None})):
        if (wanted := getattr(config, name)) not in own:
            raise InputError(
                f"{option(name)} {wanted} is not that of the encoder that is given. Load it with "
                f"load_encoder(..., {name}={wanted!r}), or leave the setting out."
            )


def choose_objective(config: TrainConfig, diagnosis: Diagnosis, batches: Batches) -> tuple[TrainConfig, str]:
    """Return the settings with `--objective auto` replaced by what suits encoder and text, and a line that says why."""
    if config.data:
        steps = total_steps(config, batches) if config.learning_rate is None else 0
        choice, reason = recommend(diagnosis, steps)
    else:
        choice, reason = recommend_for_pairs(diagnosis)
        if config.mask_similar is not None:
            choice["mask_similar"] = config.mask_similar
    if config.temperature is not None:
        choice.pop("temperature", None)
    named = " ".join(f"{option(name)} {value}" for name, value in choice.items())
    return (
        _with_defaults(config).model_copy(update=choice),
        f"Objective: {named}, since {reason}.",
    )


def total_steps(config: TrainConfig, batches: Batches) -> int:
    """Return the number of steps of a run whose epochs are chosen."""
    return config.max_steps or (config.epochs or 1) * batches.per_epoch


def require_reached_pairs(config: TrainConfig, batches: Batches) -> None:
    """Raise `InputError` if a run over a text and pairs ends before the first batch of pairs."""
    if batches.pairs is not None and not batches.paired_before(total_steps(config, batches)):
        first = next(step for step in range(1, batches.per_epoch + 1) if batches.paired_before(step))
        raise InputError(
            f"--max-steps {config.max_steps} ends the run before it learns anything from --pairs, whose batches are "
            f"evenly spread over an epoch of {batches.per_epoch:,} steps: step {first:,} is the first. Raise "
            "--max-steps to that at least, or train on the pairs alone, without --data."
        )


def choose_epochs(config: TrainConfig, batches: Batches) -> TrainConfig:
    """Return the settings with the number of epochs, where none was given."""
    if config.epochs is not None:
        return config
    return config.model_copy(update={"epochs": 1 if config.data else math.ceil(FEWEST_STEPS / batches.per_epoch)})


def make_batches(config: TrainConfig, encoder: Encoder, texts: Texts, order_version: int = LATEST) -> Batches:
    """Return the batches of a run over a text, training pairs, or both."""
    tokenizer, corpus = encoder.tokenizer, texts.corpus
    return Batches(
        corpus,
        held_out_sentences(len(corpus) if corpus is not None else 0),
        config.batch_size,
        config.seed,
        encoder.device,
        texts.training_pairs,
        Repetition(tokenizer.opening, tokenizer.closing, config.max_length) if config.view == "repetition" else None,
        order_version=order_version,
    )


def lasting(entry: str) -> str:
    """Return the name of a text that stands for the same files later and in another working directory."""
    return hub.download(entry).name if entry.startswith(hub.PREFIX) else absolute(entry)


def absolute(path: str) -> str:
    """Return a path that means the same in another working directory."""
    absolute = str(Path(path).expanduser().absolute())
    require_utf8(absolute)  # the folder that the user is in, too: a checkpoint names the file
    return absolute


def find_device(wanted: str) -> str:
    """Return the device to use; raises `InputError` if this machine does not have it."""
    available = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if wanted == "auto":
        wanted = next(name for name in ("cuda", "mps", "cpu") if available[name])
    if not available[wanted]:
        raise InputError(
            f"--device {wanted} is not available. Available: {', '.join(n for n, there in available.items() if there)}."
        )
    if wanted == "cuda" and launcher.local_processes() > torch.cuda.device_count():
        raise InputError(
            f"{launcher.local_processes()} processes were started on a machine with {torch.cuda.device_count()} GPUs. "
            "Start at most one process for each GPU (--nproc-per-node), or use --device cpu."
        )
    return wanted


def _without_noise(config: TrainConfig, encoder: Encoder) -> str:
    """Return why two passes give the same embedding, and what can be done."""
    settings = dropout_settings(encoder.model.config)
    equal = "The two views of a sentence would be equal: no noise, no positive pairs, nothing to learn."
    if not settings:
        return f"--model {config.model} has no setting for dropout. {equal} Choose another --model."
    if config.dropout == 0:
        return f"--dropout 0 takes the dropout of --model {config.model} away. {equal} Leave it out, or give a rate."
    if max(settings.values()) > 0:
        names = ", ".join(f"{name} {value:g}" for name, value in settings.items())
        unused = f"The dropout of --model {config.model} ({names}) does not change its embeddings."
        return f"{unused} {equal} Choose another --model."
    return f"--model {config.model} has no dropout in its configuration. {equal} Set it with --dropout 0.1."


def find_precision(wanted: str, device: str, float32_only: str = "") -> str:
    """Return the fastest precision that the device has in hardware; emulated bf16 is 100 times slower than fp32.

    `float32_only` says why the encoder can only be computed in float32, if that is so.
    """
    if wanted == "fp16" and device != "cuda":
        raise InputError(f"--precision fp16 needs a CUDA GPU, not {device}. Use bf16 or fp32.")
    if float32_only and wanted not in ("auto", "fp32"):
        raise InputError(
            f"--precision {wanted} can't be used with this encoder, which fails in it ({float32_only}). Use fp32."
        )
    if wanted != "auto" or float32_only:
        return "fp32" if wanted == "auto" else wanted
    if device == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp16"
    if device == "cpu":
        has = torch.cpu.get_capabilities()
        return "bf16" if has.get("avx512_bf16") or has.get("amx_bf16") or has.get("bf16") else "fp32"
    return "fp32"


def check_disk(encoder: Encoder, config: TrainConfig, run: Path) -> None:
    """Refuse a run whose checkpoints do not fit on the disk; raises `InputError`."""
    weights = sum(p.numel() * p.element_size() for p in encoder.parameters())
    encoders = 2 if config.objective == "queue" else 1  # the momentum encoder
    check_space(run, weights, config.keep + 1, encoders)  # the best is kept, too
