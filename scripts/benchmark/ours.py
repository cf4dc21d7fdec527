"""Train with this program. `turns` runs this in a process of its own and times the optimiser's steps."""

from __future__ import annotations

import os
from pathlib import Path

from scripts.benchmark.contenders import Contender, Job

NEVER = 10**9


def train_ours(contender: Contender, job: Job, folder: Path) -> None:
    """Train with the program's defaults, but on padded batches and by what computes as the contender says."""
    from simcse_train import load_encoder, train
    from simcse_train.config import make_config

    os.environ["XDG_CACHE_HOME"] = str(folder / "cache")
    settings = {
        "data": job.text,
        "model": job.model,
        "output": str(folder / "run"),
        "max_steps": job.warmup + job.steps,
        "batch_size": job.batch_size,
        "max_length": job.max_length,
        "device": job.device,
        "precision": contender.precision,
        "kernels": "compile" if contender.compiled else "auto" if contender.kernels else "off",
        "seed": job.seed,
        "eval_every": NEVER,
        "save_every": NEVER,
        "log_every": NEVER,
    }
    encoder = None if contender.packed else load_encoder(job.model, packed=False)
    train(make_config(settings), encoder)
