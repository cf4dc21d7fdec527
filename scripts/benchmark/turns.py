"""Processes that take their optimiser steps in turn, so that all of them meet the same state of the machine.

Each contender is a process, so that its peak memory is its own. It trains as it always does; a hook on the
optimiser's step blocks it after each step until its next turn. Between turns the process and its data loader workers
are stopped by SIGSTOP, so that nothing runs but the contender whose turn it is. A step is timed from the start of the
turn to the end of the next optimiser step: from the batch to the weights, tokenising included where the contender
tokenises while it trains.

A step counts as contended if the threads of the process waited for a processor for 2 % of its time or more, because
other programs ran (Linux: /proc/self/task/*/schedstat).
"""

from __future__ import annotations

import contextlib
import logging
import multiprocessing
import os
import resource
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
from torch.optim.optimizer import register_optimizer_step_post_hook

from scripts.benchmark.bound import Products, multiply
from scripts.benchmark.contenders import Contender, Job

CONTENDED = 0.02  # share of a step's time
OPERATORS = 14  # shown in a profile

processes = multiprocessing.get_context("spawn")


class ContenderFailed(Exception):
    """A contender's process raised an error or ended; the message says why."""


@dataclass(frozen=True)
class Turn:
    """What a process is asked to do: so many steps, under the profiler or not."""

    steps: int = 1
    profile: bool = False


@dataclass(frozen=True)
class Report:
    """What a turn gave."""

    seconds: float  # per step
    waited: float  # share of the time that threads of the process waited for a processor
    memory: float  # MiB, peak of the process so far
    device_memory: float  # MiB, peak on the GPU so far
    operators: tuple[dict[str, Any], ...] = ()  # of a profiled turn: the most expensive ones

    @property
    def contended(self) -> bool:
        """Whether other programs took processor time from this turn."""
        return self.waited >= CONTENDED


class Running:
    """A process that stands still except in its turn."""

    def __init__(self, work: Callable[..., None], *arguments: Any, job: Job) -> None:
        self._connection, theirs = processes.Pipe()
        self._process = processes.Process(target=_live, args=(work, arguments, job, theirs))
        self._process.start()
        theirs.close()

    @property
    def pid(self) -> int:
        """The id of the process."""
        return self._process.pid or 0

    def wait_until_ready(self) -> None:
        """Return after the warm-up steps, with the process stopped; raises `ContenderFailed`."""
        self._receive()

    def take(self, turn: Turn) -> Report:
        """Let the process take its turn and return what it measured; raises `ContenderFailed`."""
        self._signal(signal.SIGCONT)
        self._connection.send(turn)
        report: Report = self._receive()
        return report

    def end(self) -> None:
        """Kill the process and its data loader workers."""
        self._process.kill()
        self._signal(signal.SIGKILL)
        self._process.join()
        self._connection.close()

    def _receive(self) -> Any:
        try:
            received = self._connection.recv()
        except EOFError:
            raise ContenderFailed("its process was killed, perhaps because memory ran out") from None
        if isinstance(received, ContenderFailed):
            raise received
        self._signal(signal.SIGSTOP)
        return received

    def _signal(self, number: int) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, number)


class Clock:
    """Called after each step: reports the time of a turn and blocks until the next one."""

    def __init__(self, job: Job, connection: Connection) -> None:
        self._job, self._connection = job, connection
        self._left = job.warmup  # steps until the next report
        self._turn: Turn | None = None
        self._profiler: torch.profiler.profile | None = None
        self._began = self._waited = 0.0

    def __call__(self, *_: Any) -> None:
        """Count a step; at the end of a turn, report it and wait for the next."""
        self._left -= 1
        if self._left > 0:
            return
        _synchronize(self._job.device)
        self._connection.send(self._report())
        self._turn = self._connection.recv()
        self._left = self._turn.steps
        if self._turn.profile:
            self._profiler = torch.profiler.profile()
            self._profiler.start()
        self._waited = _seconds_waited()
        self._began = time.perf_counter()

    def _report(self) -> Report | None:
        if self._turn is None:  # the warm-up is over
            return None
        seconds = time.perf_counter() - self._began
        waited = _seconds_waited() - self._waited
        if self._profiler is not None:
            self._profiler.stop()
        cuda = self._job.device == "cuda"
        return Report(
            seconds=seconds / self._turn.steps,
            waited=waited / seconds,
            memory=_peak_memory(),
            device_memory=torch.cuda.max_memory_allocated() / 2**20 if cuda else 0.0,
            operators=_operators(self._profiler, self._job.device, self._turn.steps, seconds),
        )


def train(work: Callable[..., None], contender: Contender, folder: Path, job: Job, clock: Clock) -> None:
    """Train as a contender does, with the clock called after each step of the optimiser."""
    register_optimizer_step_post_hook(clock)
    folder.mkdir(parents=True)
    work(contender, job, folder)


def multiply_in_turn(counts: Products, precision: str, job: Job, clock: Clock) -> None:
    """Compute the products of the bound, with the clock called after each step."""
    multiply(counts, precision, job.device, clock)


def _live(work: Callable[..., None], arguments: tuple[Any, ...], job: Job, connection: Connection) -> None:
    """Run a contender in this process until it is killed; send what it raises."""
    os.setpgid(0, 0)  # a group that can be stopped together with its data loader workers
    torch.set_num_threads(job.threads)
    logging.disable(logging.WARNING)
    try:
        work(*arguments, job=job, clock=Clock(job, connection))
        error = "it ended before its steps were measured"
    except Exception as raised:  # whatever a switch of the peer runs into is the result of its row
        error = f"{type(raised).__name__}: {' '.join(str(raised).split())[:200]}"
    connection.send(ContenderFailed(error))


def _synchronize(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()
    elif device == "mps":
        torch.mps.synchronize()


def _seconds_waited() -> float:
    """Return how long the threads of this process have waited for a processor; 0 where that is unknown."""
    total = 0
    for path in Path("/proc/self/task").glob("*/schedstat"):
        with contextlib.suppress(OSError):  # a thread that has just ended
            total += int(path.read_text().split()[1])  # nanoseconds
    return total / 1e9


def _peak_memory() -> float:
    """Return the most memory in MiB that this process has held."""
    status = Path("/proc/self/status")
    if status.exists():  # getrusage would also count what the parent held when it started this process
        return int(status.read_text().split("VmHWM:")[1].split()[0]) / 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 1024)


def _operators(
    profiler: torch.profiler.profile | None, device: str, steps: int, seconds: float
) -> tuple[dict[str, Any], ...]:
    """Return the operators that take most time themselves: name, share of the step, milliseconds and calls per step."""
    if profiler is None:
        return ()
    events = [
        (
            event.key,
            (event.self_device_time_total if device == "cuda" else event.self_cpu_time_total) / 1e6,
            event.count,
        )
        for event in profiler.key_averages()
    ]
    return tuple(
        {"operator": key, "share": own / seconds, "milliseconds": own / steps * 1e3, "calls": count / steps}
        for key, own, count in sorted(events, key=lambda event: -event[1])[:OPERATORS]
    )
