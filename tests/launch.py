"""Several processes for a test, as a launcher would start them: forked from a process that has imported the package."""

from __future__ import annotations

import multiprocessing
import os
import socket
import sys
import threading
from collections.abc import Callable
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from tqdm import tqdm

SECONDS = 300  # a process that takes longer waits for another that never comes

_forked = multiprocessing.get_context("forkserver")
_forked.set_forkserver_preload(["simcse_train.training.start"])


def launch(count: int, target: Callable[..., None], *arguments: Any) -> list[BaseProcess]:
    """Start so many processes that call the target with the arguments; a single one is not told of others."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    cache = os.environ["XDG_CACHE_HOME"]
    processes: list[BaseProcess] = []
    for rank in range(count):
        own = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": count, "LOCAL_WORLD_SIZE": count} if count > 1 else {}
        place = {"MASTER_ADDR": "localhost", "MASTER_PORT": port, "OMP_NUM_THREADS": 1, "XDG_CACHE_HOME": cache}
        environment = {name: str(value) for name, value in (own | place).items()}
        processes.append(_forked.Process(target=_enter, args=(environment, target, arguments)))
        processes[-1].start()
    return processes


def finish(processes: list[BaseProcess]) -> list[int | None]:
    """Wait for the processes and return their exit statuses; those that hang are killed."""
    for process in processes:
        process.join(SECONDS)
        process.kill()
    return [process.exitcode for process in processes]


def run(count: int, target: Callable[..., None], *arguments: Any) -> list[int | None]:
    """Start processes, wait for them, and return their exit statuses."""
    return finish(launch(count, target, *arguments))


def command_line(screen: Path, *arguments: str) -> None:
    """Run `simcse-train` with these arguments; what it prints is added to the file `screen`."""
    from simcse_train.cli import main

    descriptor = os.open(screen, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    sys.argv = ["simcse-train", *arguments]
    main()


def _enter(environment: dict[str, str], target: Callable[..., None], arguments: tuple[Any, ...]) -> None:
    os.environ.update(environment)
    import torch

    torch.set_num_threads(1)
    tqdm.set_lock(threading.RLock())  # its own lock is shared between processes and would outlive a killed one
    target(*arguments)
