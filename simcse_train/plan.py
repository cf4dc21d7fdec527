"""Settings -> what they mean here: the run's folder, device and precision, all checked before anything is computed."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

import torch

from simcse_train.config import STARTER, InputError, TrainConfig, make_config, option
from simcse_train.corpus import keep_standard_input
from simcse_train.encoder import Encoder, is_deterministic
from simcse_train.writing import PARTIAL

# What may change when a run goes on: everything else decides which run it is.
CHANGEABLE = ("data", "eval", "epochs", "max_steps", "save_every", "save_minutes", "keep", "log_every")


def new_run_folder(config: TrainConfig) -> Path:
    """Make the run's folder; raises `InputError` if it can't be made or holds more than what a run that never began leaves."""
    default = Path("runs") / f"{Path(config.model).name}-{datetime.now():%Y%m%d-%H%M%S}"
    run = Path(config.output).expanduser() if config.output else default
    try:
        if run.exists() and (not run.is_dir() or any(p.name != ".lock" and not p.name.endswith(PARTIAL) for p in run.iterdir())):
            what = "already holds a run" if (run / "config.yaml").exists() else "is not an empty folder"
            raise InputError(f"--output {run} {what}. Choose another folder, or go on with that run: simcse-train --resume {run}.")
        run.mkdir(parents=True, exist_ok=True)
        (run / ".lock").touch()
    except OSError as error:
        raise InputError(f"--output {run} can't be written: {error.strerror}. Choose a folder that you may write to.") from None
    return run


def remove_unused(run: Path) -> None:
    """Take back the folder of a run that never began."""
    with contextlib.suppress(OSError):  # whatever is wrong with the folder is being said already
        for path in [run / name for name in ("stdin.txt", "config.yaml", ".lock")] + list(run.glob(f".*{PARTIAL}")):
            path.unlink(missing_ok=True)
        if not any(run.iterdir()):
            run.rmdir()


def resolve(config: TrainConfig, encoder: Encoder, run: Path) -> TrainConfig:
    """Replace every auto by what it means here, and every path by one that holds from any folder.

    Raises `InputError` where a setting does not fit the encoder or the machine.
    """
    if config.max_length > encoder.max_positions:
        raise InputError(
            f"--max-length {config.max_length} is beyond the {encoder.max_positions} positions of {config.model}. Use at most "
            f"{encoder.max_positions}."
        )
    if is_deterministic(encoder):
        raise InputError(
            f"--model {config.model} has no dropout in its configuration. The two views of a sentence would be equal: no noise, no "
            "positive pairs, nothing to learn. Set it with --dropout 0.1."
        )
    device = find_device(config.device)
    data = [str(keep_standard_input(run).resolve()) if entry == "-" else _absolute(entry) for entry in config.data]
    is_folder = config.model != STARTER and Path(config.model).expanduser().exists()
    return config.model_copy(
        update={
            "data": data,
            "output": str(run),
            "model": _absolute(config.model) if is_folder else config.model,
            "eval": _absolute(config.eval) if config.eval else None,
            "pooling": encoder.pooling,
            "projection": {"auto": "on" if encoder.pooling == "cls" else "off"}.get(config.projection, config.projection),
            "device": device,
            "precision": _precision(config.precision, device),
        }
    )


def _absolute(path: str) -> str:
    return str(Path(path).expanduser().absolute())


def find_device(wanted: str) -> str:
    """Return the device that is meant; raises `InputError` if this machine lacks it."""
    available = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if wanted == "auto":
        return next(name for name in ("cuda", "mps", "cpu") if available[name])
    if not available[wanted]:
        raise InputError(f"--device {wanted} is not there: torch finds {', '.join(n for n, there in available.items() if there)}.")
    return wanted


def _precision(wanted: str, device: str) -> str:
    """Return the fastest arithmetic that the device has in hardware; emulated bfloat16 is a hundred times slower than float32."""
    if wanted == "fp16" and device != "cuda":
        raise InputError(f"--precision fp16 needs a CUDA card, not {device}. Use bf16 or fp32.")
    if wanted != "auto":
        return wanted
    if device == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp16"
    if device == "cpu":
        has = torch.cpu.get_capabilities()
        return "bf16" if has.get("avx512_bf16") or has.get("amx_bf16") or has.get("bf16") else "fp32"
    return "fp32"


def changed(config: TrainConfig, changes: Mapping[str, Any]) -> TrainConfig:
    """Return the settings of a run with those changed that may be; raises `InputError` for the others."""
    old = config.model_dump()
    for name, value in changes.items():
        added = name == "eval" and old[name] is None  # labelled pairs may move, but not come in later: they choose the best
        if (name not in CHANGEABLE or added) and value != old[name]:
            raise InputError(
                f"{option(name)} {value} differs from the run's own {old[name]}, and would make it another run. Leave it out to go on, or "
                "start a new run without --resume."
            )
    for name in ("epochs", "max_steps"):
        if changes.get(name) is not None and old[name] is not None and changes[name] < old[name]:
            raise InputError(f"{option(name)} can only be raised when a run goes on; it was {old[name]}.")
    allowed = {name: value for name, value in changes.items() if name in CHANGEABLE}
    if "data" in allowed:
        allowed["data"] = [_absolute(entry) for entry in allowed["data"]]
    if "eval" in allowed:
        allowed["eval"] = _absolute(allowed["eval"])
    return make_config({**old, **allowed})


def check_space(encoder: Encoder, config: TrainConfig, run: Path) -> None:
    """Refuse a run whose checkpoints the disk can't hold: weights and two moments each, one more while saving, and the best.

    What a resumed run has there already counts as free, since it will be replaced.
    """
    weights = sum(p.numel() * p.element_size() for p in encoder.parameters())
    needed = weights * 3 * (config.keep + 1 + bool(config.eval)) + weights
    there = sum(p.stat().st_size for name in ("checkpoints", "encoder") for p in (run / name).rglob("*") if p.is_file())
    free = shutil.disk_usage(run).free + there
    if free < needed:
        raise InputError(
            f"--output {run}: the disk has {free / 2**20:,.0f} MiB for it, and {config.keep} checkpoints and the encoder need "
            f"{needed / 2**20:,.0f} MiB. Free some, lower --keep, or choose another folder."
        )
