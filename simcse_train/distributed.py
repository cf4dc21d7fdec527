"""What several processes do together: agree, wait for each other, gather embeddings, sum gradients.

`torchrun` or `accelerate launch` starts the processes (see `launcher`); torch.distributed connects them, by Gloo
between CPUs and NCCL between GPUs. Process 0 is the main process: it writes and prints. Without a launcher there is one
process, and every function here returns at once.

Nothing here has a time-out that a long wait could reach: others may wait for hours while one tokenises. A process that
dies closes its connections, which ends every wait for it.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import socket
import time
from collections.abc import Callable, Iterator, Sequence
from datetime import timedelta
from typing import Any, NoReturn, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.distributed_c10d import PrefixStore, Store
from torch.distributed.rendezvous import rendezvous

from simcse_train import launcher
from simcse_train.errors import InputError, Interrupted, ProcessLost, SaveError, Stopped, TrainingError

FOREVER = timedelta(days=365)
BUCKET = 2**23  # values that are summed in one message; the next are collected meanwhile
LAST_WORDS = "last words"  # key of the store: the first error that ended a process
SECONDS_TO_DIE = 3.0  # after a connection broke until the system has noticed that the process is dead

SILENT = logging.CRITICAL + 1

T = TypeVar("T")


class Disconnected(TrainingError):
    """The connection to another process broke; `connected` turns it into the reason."""


_store: Store | None = None
_members: list[tuple[str, int]] = []  # host and process id of each process
_connections = 0  # that this process has made: each has keys of its own


def world_size() -> int:
    """Return the number of connected processes."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """Return the number of this process, from 0."""
    return dist.get_rank() if world_size() > 1 else 0


def is_main() -> bool:
    """Return whether this is the process that writes and prints."""
    return rank() == 0


@contextlib.contextmanager
def connected(advice: Callable[[], str]) -> Iterator[None]:
    """Connect the processes that the launcher started for as long as the block lasts; does nothing for a single one.

    Of the other processes nothing is logged. An error that ends the block on one process ends it on all: the process
    that fails raises it, and the others raise an error of the same kind that names that process. Where a process died
    without a word they raise `ProcessLost`, with the `advice` at its end.
    """
    global _store, _connections
    if launcher.processes() == 1 or world_size() > 1:
        yield
        return
    if missing := [name for name in ("MASTER_ADDR", "MASTER_PORT") if name not in os.environ]:
        raise InputError(
            f"The environment has RANK and WORLD_SIZE, by which a launcher starts several processes, without "
            f"{' and '.join(missing)}. Start with torchrun, or unset them for a single process."
        )
    store, number, size = next(rendezvous("env://", timeout=FOREVER))
    _connections += 1
    _store = PrefixStore(f"simcse-train/{launcher.attempt()}/{_connections}", store)
    # NCCL moves what is on GPUs; what the processes agree on is on the CPU and moved by Gloo.
    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() and dist.is_nccl_available() else "gloo"
    if torch.cuda.is_available():
        torch.cuda.set_device(launcher.local_rank() % torch.cuda.device_count())
    dist.init_process_group(backend, store=_store, rank=number, world_size=size, timeout=FOREVER)
    logger = logging.getLogger("simcse_train")
    level = logger.level
    try:
        _members[:] = [tuple(member) for member in collect([socket.gethostname(), os.getpid()])]
        if number > 0:
            logger.setLevel(SILENT)
        yield
    except Disconnected:
        _raise_reason(advice)
    except Stopped:
        raise
    except BaseException as error:
        if isinstance(error, Interrupted) and _dead():  # the launcher ends the others when one of them has died
            _raise_reason(advice)
        _leave_last_words(error)
        raise
    finally:
        logger.setLevel(level)
        dist.destroy_process_group()
        _store = None
        _members.clear()


def wait() -> None:
    """Wait until every process has come here."""
    highest(0)


@contextlib.contextmanager
def first_on_each_machine() -> Iterator[None]:
    """Run the block in one process of each machine, and only then in the others."""
    if launcher.local_rank() > 0:
        wait()
    yield
    if launcher.local_rank() == 0:
        wait()


def highest(*numbers: int) -> list[int]:
    """Return the largest of each of the numbers that the processes give."""
    if world_size() == 1:
        return list(numbers)
    found = torch.tensor(numbers)
    with _lost():
        dist.all_reduce(found, dist.ReduceOp.MAX)
    return [int(number) for number in found]


def collect(value: Any) -> list[Any]:
    """Return what every process gives, in their order; values are what JSON can hold."""
    if world_size() == 1:
        return [value]
    texts: list[Any] = [None] * world_size()
    with _lost():
        dist.all_gather_object(texts, json.dumps(value))
    return [json.loads(text) for text in texts]


def from_main(function: Callable[[], T]) -> T:
    """Return on every process what the function returns on the main one, the only one that calls it.

    The value is what JSON can hold.
    """
    if world_size() == 1:
        return function()
    text = [json.dumps(function()) if is_main() else ""]
    with _lost():
        dist.broadcast_object_list(text, src=0)
    value: T = json.loads(text[0])
    return value


def tensor_from_main(tensor: Tensor) -> Tensor:
    """Return the main process's tensor; each process gives one of the same shape and type, on the CPU."""
    with _lost():
        if world_size() > 1:
            dist.broadcast(tensor, src=0)
    return tensor


def shares(count: int) -> list[tuple[int, int]]:
    """Return the first and the end of each process's share of so many things, evenly and in order."""
    size = world_size()
    return [(number * count // size, (number + 1) * count // size) for number in range(size)]


def gather_shares(rows: Tensor, count: int) -> Tensor:
    """Return the rows (count, width) of which each process has its share."""
    return gather_rows(rows, [end - first for first, end in shares(count)])


def gather_rows(rows: Tensor, counts: Sequence[int]) -> Tensor:
    """Return the rows (sum of counts, width) of all processes, in their order.

    rows: (counts[rank], width). Every process knows how many rows each gives, and may give none.
    """
    if world_size() == 1:
        return rows
    longest = max(counts)
    mine = rows.new_zeros(longest, rows.shape[1])
    mine[: len(rows)] = rows
    found = [torch.empty_like(mine) for _ in counts]
    with _lost():
        dist.all_gather(found, mine)
    return torch.cat([part[:count] for part, count in zip(found, counts, strict=True)])


def sum_in_place(tensors: Sequence[Tensor]) -> None:
    """Replace each tensor by its sum over all processes; the sums have the same bits on all of them."""
    if world_size() == 1:
        return
    moving: tuple[list[Tensor], Tensor, Any] | None = None
    with _lost():
        for bucket in _buckets(tensors):
            flat = torch.cat([tensor.reshape(-1) for tensor in bucket])
            work = dist.all_reduce(flat, async_op=True)
            _unpack(moving)
            moving = bucket, flat, work
        _unpack(moving)


def _unpack(moving: tuple[list[Tensor], Tensor, Any] | None) -> None:
    if moving is not None:
        bucket, flat, work = moving
        work.wait()
        for tensor, values in zip(bucket, flat.split([tensor.numel() for tensor in bucket]), strict=True):
            tensor.copy_(values.view(tensor.shape))


def _buckets(tensors: Sequence[Tensor]) -> Iterator[list[Tensor]]:
    """Yield the tensors in lists of one type and at most `BUCKET` values, where a single tensor does not have more."""
    bucket: list[Tensor] = []
    for tensor in tensors:
        size = sum(held.numel() for held in bucket)
        if bucket and (tensor.dtype != bucket[0].dtype or size + tensor.numel() > BUCKET):
            yield bucket
            bucket = []
        bucket.append(tensor)
    if bucket:
        yield bucket


@contextlib.contextmanager
def _lost() -> Iterator[None]:
    """Raise `Disconnected` where torch finds that another process is gone."""
    try:
        yield
    except RuntimeError as error:
        raise Disconnected(" ".join(str(error).split())) from None


def _leave_last_words(error: BaseException) -> None:
    """Tell the other processes why this one ends; the first to do so is heard."""
    words = {
        "rank": rank(),
        "kind": type(error).__name__,
        "text": " ".join(str(error).split()),
        "signal": getattr(error, "signal_number", 0),
    }
    with contextlib.suppress(RuntimeError):  # the store is gone where the main process has ended
        if _store is not None and not _store.check([LAST_WORDS]):
            _store.set(LAST_WORDS, json.dumps(words))


def _raise_reason(advice: Callable[[], str]) -> NoReturn:
    """Raise the error with which another process ended."""
    until = time.monotonic() + SECONDS_TO_DIE
    words: dict[str, Any] | None = None
    dead: list[int] = []
    while not words and not dead and time.monotonic() < until:
        with contextlib.suppress(RuntimeError):
            words = json.loads(_store.get(LAST_WORDS)) if _store is not None and _store.check([LAST_WORDS]) else None
        dead = _dead()
        time.sleep(0.05)
    if words and words["kind"] == Interrupted.__name__:
        raise Interrupted(words["signal"])
    if words:
        kinds: dict[str, type[Exception]] = {kind.__name__: kind for kind in (InputError, SaveError, TrainingError)}
        where, kind = _named([words["rank"]]), kinds.get(words["kind"])
        if kind is None:
            raise TrainingError(f"{where} failed ({words['kind']}: {words['text']}).")
        raise kind(words["text"] if words["rank"] == 0 else f"{where}: {words['text']}")
    if not _members:
        raise TrainingError(f"A process ended before all were connected. {advice()}")
    host = _members[rank()][0]
    here = [number for number, (other, _) in enumerate(_members) if other == host]
    gone = dead or sorted({*range(len(_members))} - {*here})  # of another machine only the connection is known
    message = f"{_named(gone)} ended without a word: killed, or its machine is gone. {advice()}"
    raise ProcessLost(message, is_first_left=rank() == min({*here} - {*dead}))


def _dead() -> list[int]:
    """Return the numbers of the processes of this machine that are no longer alive."""
    import psutil  # slow to import, and a run that nothing happens to does not need it

    def is_alive(process: int) -> bool:
        try:
            return bool(psutil.Process(process).status() != psutil.STATUS_ZOMBIE)
        except psutil.Error:
            return False

    host = _members[rank()][0] if _members else ""
    return [number for number, (other, process) in enumerate(_members) if other == host and not is_alive(process)]


def _named(numbers: Sequence[int]) -> str:
    """Return which processes these are, for the screen."""
    hosts = sorted({_members[number][0] for number in numbers})
    which = "Process" if len(numbers) == 1 else "Processes"
    return f"{which} {', '.join(map(str, numbers))} of {len(_members)} (on {', '.join(hosts)}; the first is 0)"
