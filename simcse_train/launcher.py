"""What `torchrun` or `accelerate launch` tells a process by its environment; does not import torch."""

from __future__ import annotations

import os
import shlex
from datetime import datetime
from pathlib import Path


def rank() -> int:
    """Return the number of this process among all that were launched, 0 without a launcher."""
    return int(os.environ.get("RANK", "0")) if processes() > 1 else 0


def processes() -> int:
    """Return how many processes were launched on all machines, 1 without a launcher."""
    return int(os.environ.get("WORLD_SIZE", "1")) if "RANK" in os.environ else 1


def local_rank() -> int:
    """Return the number of this process among those on its machine."""
    return int(os.environ.get("LOCAL_RANK", "0")) if processes() > 1 else 0


def local_processes() -> int:
    """Return how many processes were launched on this machine."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", "1")) if processes() > 1 else 1


def attempt() -> int:
    """Return how often the launcher has started the processes again after a failure (`--max-restarts`)."""
    return int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0"))


def is_launched() -> bool:
    """Return whether a launcher started this process that may start it again."""
    return "TORCHELASTIC_RUN_ID" in os.environ


def command() -> str:
    """Return how the program was started, up to its own options."""
    if processes() == 1:
        return "simcse-train"
    machines = processes() // local_processes()
    several = f"--nnodes {machines} RENDEZVOUS " if machines > 1 else ""
    return f"torchrun {several}--nproc-per-node {local_processes()} -m simcse_train"


def resuming(run: Path) -> str:
    """Return the command that continues a run."""
    return f"{command()} --resume {shlex.quote(str(run))}"


def started_at() -> datetime:
    """Return when the launcher started, the same on every attempt; without a launcher, the present."""
    if not is_launched():
        return datetime.now()
    import psutil  # slow to import, and a single process does not need it

    return datetime.fromtimestamp(psutil.Process(os.getppid()).create_time())
