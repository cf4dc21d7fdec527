"""Kill a training run again and again, resume it, and compare its end with an undisturbed run, bit by bit.

    python scripts/torture.py --kills 100
    python scripts/torture.py --kills 50 --processes 2

Each life of the run is a process that executes the command line and is ended by SIGKILL: while it starts, between and
within steps, inside a save, inside the export. An audit hook in that process follows what it does on the disk: it
tells which phase the run is in, and it slows down every change, so that kills fall between any two of them. The
package itself is not changed. The undisturbed run is a plain `python -m simcse_train`. The lives are forked from a
process that has imported the package and done nothing else, which saves the seconds of the imports; the last life has
no hook. With several processes a random one of them is killed, and the others must end by themselves. The exit status
is 1 if anything was lost.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import random
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from multiprocessing.process import BaseProcess
from pathlib import Path
from types import MappingProxyType
from typing import Annotated, Any

import torch
import typer
from tqdm import tqdm
from transformers import BertConfig, BertModel, BertTokenizer

from simcse_train.cli import main as simcse_train
from simcse_train.manifest import damage
from simcse_train.runs.folder import CHECKPOINTS, ENCODER, METRICS, checkpoints

STARTING, READING, TRAINING, SAVING, EXPORTING = range(5)
PHASES = ("starting", "reading the text", "training", "saving", "exporting")
CHANGES = ("os.rename", "os.remove", "os.rmdir", "os.mkdir")  # audit events that come before a change to the disk
WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC

SAVE_EVERY = 2
SAVES_PER_KILL = 2  # enough for the run to outlive its kills
SECONDS_TO_END = 60  # for the processes that are left when one was killed; on a busy machine
SECONDS_ALONE = 2.0  # before they are told to end
SLOW = 0.004  # seconds before each change to the disk; a save makes about sixty

processes = multiprocessing.get_context("forkserver")
processes.set_forkserver_preload(["simcse_train.training.start"])


@dataclass
class Verdict:
    """What happened to a run that was killed again and again."""

    precision: str
    processes: int
    kills: Counter[str] = field(default_factory=Counter)  # by what they interrupted
    half_written: int = 0  # kills that left a temporary file or folder
    before_first: int = 0  # kills before there was a checkpoint
    furthest: int = 0  # step of the newest checkpoint
    seconds: float = 0.0
    failures: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        where = ", ".join(f"{count} {phase}" for phase, count in self.kills.most_common())
        many = f" of one of {self.processes} processes" if self.processes > 1 else ""
        lines = [
            f"{self.precision}: {self.kills.total()} kills{many} in {self.seconds:.0f} s: {where}; "
            f"{self.half_written} left something half-written, {self.before_first} came before the first checkpoint",
            *(f"{self.precision}: FAILED: {failure}" for failure in self.failures),
        ]
        if not self.failures:
            lines.append(f"{self.precision}: the same bits as the undisturbed run, no temporary files")
        return "\n".join(lines)


def torture(folder: Path, precision: str, kills: int, seed: int, count: int = 1) -> Verdict:
    """Kill one run so many times, let it end, and report what was lost; `folder` is empty."""
    began, rng, verdict = time.monotonic(), random.Random(seed), Verdict(precision, count)
    options = _options(folder, precision, steps=SAVE_EVERY * SAVES_PER_KILL * kills)
    whole, run, cache = folder / "whole", folder / "run", folder / "cache"
    with (folder / "screen.txt").open("a") as screen:
        # The last of two equal options wins. The test includes that saving does not change what is computed.
        launcher = ["-m", "torch.distributed.run", "--nproc-per-node", str(count)] if count > 1 else []
        command = [
            sys.executable,
            *launcher,
            "-m",
            "simcse_train",
            *options,
            "--output",
            str(whole),
            "--save-every",
            "1000000",
        ]
        cache_of_whole = str(folder / "cache-of-whole")
        subprocess.run(
            command, env={**os.environ, "XDG_CACHE_HOME": cache_of_whole}, stdout=screen, stderr=screen, check=True
        )

    # The first kills are aimed at the time before the first checkpoint, the last ones at the export. Half of those in
    # between are aimed at a save.
    early, late = max(1, kills // 20), max(1, kills // 10)
    aims = [rng.choice([STARTING, READING, TRAINING]) for _ in range(early)]
    aims += [rng.choice([STARTING, TRAINING, SAVING, SAVING]) for _ in range(kills - early - late)]
    aims += [EXPORTING] * late
    lasts = dict.fromkeys(range(len(PHASES)), 0.1)  # seconds that each phase took when it was last seen
    while aims:
        arguments = ["--resume", str(run)] if (run / "config.yaml").exists() else [*options, "--output", str(run)]
        phase = processes.RawValue("i", STARTING)
        lives = start(arguments, folder, count, phase, SLOW)
        skipped = rng.randrange(3) if aims[0] == SAVING else 0
        _wait(lives[0], phase, aims[0], skipped, lasts)
        victim = rng.choice(lives)
        victim.join(rng.uniform(0, lasts[aims[0]]))
        victim.kill()
        statuses = _end(lives)
        if (words := _wrong(statuses, lives.index(victim))) is not None:
            verdict.failures.append(f"{words}: {_last_words(folder)}")
            break
        if victim.exitcode == 0:
            lasts[aims[0]] /= 2  # the run ended before the kill
        else:
            aims.pop(0)
            verdict.kills[PHASES[phase.value]] += 1
            _inspect(run, cache, verdict)
    lives = start(["--resume", str(run)], folder, count, processes.RawValue("i"), 0.0)
    for life in lives:
        life.join()
    if any(life.exitcode for life in lives):
        ends = ", ".join(str(life.exitcode) for life in lives)
        verdict.failures.append(f"the last life ended with status {ends}: {_last_words(folder)}")
    _compare(whole, run, cache, verdict)
    verdict.seconds = time.monotonic() - began
    return verdict


def start(arguments: list[str], folder: Path, count: int, phase: Any, seconds: float) -> list[BaseProcess]:
    """Start one life of the run, of so many processes; the first is the main one, which alone changes the disk."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = str(free.getsockname()[1])
    lives: list[BaseProcess] = []
    for rank in range(count):
        names = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": count, "LOCAL_WORLD_SIZE": count, "MASTER_PORT": port}
        names |= {"MASTER_ADDR": "localhost", "OMP_NUM_THREADS": 1}
        environment = {name: str(value) for name, value in names.items()} if count > 1 else {}
        slow = seconds if rank == 0 else 0.0
        lives.append(processes.Process(target=live, args=(arguments, str(folder), phase, slow, environment)))
        lives[-1].start()
    return lives


def _end(lives: list[BaseProcess]) -> list[int | None]:
    """Wait for the processes of a life and return their statuses, None for one that had to be killed at last.

    Those that are not yet connected wait for the one that was killed, until they get SIGTERM, as from a launcher.
    """
    until = time.monotonic() + SECONDS_TO_END
    for life in lives:
        life.join(SECONDS_ALONE)
        life.terminate()
    statuses = []
    for life in lives:
        life.join(max(0.0, until - time.monotonic()))
        statuses.append(life.exitcode)
        life.kill()
        life.join()
    return statuses


def _wrong(statuses: list[int | None], victim: int) -> str | None:
    """Return what is wrong with how the processes of a life ended, one of which was killed, or None."""
    for rank, status in enumerate(statuses):
        if status is None:
            return f"process {rank} did not end within {SECONDS_TO_END} s"
        if status not in ((0, -9) if rank == victim else (0, 1, -15, 143)):
            return f"process {rank} ended with status {status}"
    return None


def live(
    arguments: list[str], folder: str, phase: Any, seconds: float, environment: Mapping[str, str] = MappingProxyType({})
) -> None:
    """Run the command line as a process of the run: note its phase and wait before every change to the disk."""
    os.environ.update(environment, XDG_CACHE_HOME=f"{folder}/cache")
    signal.signal(signal.SIGHUP, signal.SIG_DFL)  # under nohup a child would inherit that a hangup is ignored
    screen = os.open(f"{folder}/screen.txt", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(screen, 1)
    os.dup2(screen, 2)

    def follow(event: str, details: tuple[Any, ...]) -> None:
        if event not in CHANGES and event != "open":
            return
        path = str(details[0])
        changes = event in CHANGES or bool(details[2] & WRITING)
        found = phase_of(path, folder, changes=changes)
        if found is not None:
            phase.value = found
        if changes and path.startswith((f"{folder}/run", f"{folder}/cache")):
            time.sleep(seconds)

    tqdm.set_lock(threading.RLock())  # its own lock is shared between processes and would outlive a killed one
    if seconds:
        sys.addaudithook(follow)
    sys.argv = ["simcse-train", *arguments]
    simcse_train()


def phase_of(path: str, folder: str, *, changes: bool) -> int | None:
    """Return the phase in which a run opens or changes a path; None where the path does not tell."""
    if path.startswith(f"{folder}/cache/"):
        return READING
    if not changes or not path.startswith(f"{folder}/run/"):
        return None
    name = path.removeprefix(f"{folder}/run/").lstrip(".")
    places = ((CHECKPOINTS, SAVING), (ENCODER, EXPORTING), (METRICS, TRAINING))
    return next((phase for place, phase in places if name.startswith(place)), None)


def _wait(life: Any, phase: Any, aim: int, skipped: int, lasts: dict[int, float]) -> None:
    """Wait until a life has entered a phase once more than `skipped` times, or has ended; note how long phases last."""
    now, since = STARTING, time.monotonic()
    while life.is_alive():
        if phase.value != now:
            lasts[now] = time.monotonic() - since
            if now == aim:
                skipped -= 1
            now, since = phase.value, time.monotonic()
        if now == aim and skipped <= 0:
            return
        time.sleep(0.001)


def _inspect(run: Path, cache: Path, verdict: Verdict) -> None:
    """Check what a kill left: every visible checkpoint is intact, and none is lost."""
    saved = checkpoints(run)
    verdict.before_first += not saved
    verdict.half_written += bool(_temporaries(run, cache))
    for path in saved:
        if reason := damage(path):
            verdict.failures.append(f"after kill {verdict.kills.total()} {path.name} was damaged: {reason}")
    newest = int(saved[-1].name.removeprefix("step-")) if saved else 0
    if newest < verdict.furthest:
        verdict.failures.append(
            f"after kill {verdict.kills.total()} the newest checkpoint was {newest}, before it {verdict.furthest}"
        )
    verdict.furthest = newest


def _compare(whole: Path, run: Path, cache: Path, verdict: Verdict) -> None:
    """Compare a run that was killed with one that was not."""
    newest = checkpoints(whole)[-1].relative_to(whole)
    names = [
        "encoder/model.safetensors",
        *(f"{newest}/{name}.safetensors" for name in ("encoder/model", "head", "optimizer")),
    ]
    for name in names:
        if not (run / name).exists() or (run / name).read_bytes() != (whole / name).read_bytes():
            verdict.failures.append(f"{name} differs from the undisturbed run's")
    logged = [[json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()] for path in (whole, run)]
    # The speed differs from run to run; everything else is equal.
    measured = [[(m["step"], m.get("epoch"), m.get("uniformity"), m.get("loss")) for m in lines] for lines in logged]
    if measured[0] != measured[1]:
        verdict.failures.append("metrics.jsonl differs from the undisturbed run's")
    verdict.failures += [f"{path} is left over" for path in _temporaries(run, cache)]


def _temporaries(*folders: Path) -> list[Path]:
    return [p for folder in folders for p in folder.rglob("*") if p.name.endswith((".partial", ".replaced"))]


def _last_words(folder: Path) -> str:
    return " ".join((folder / "screen.txt").read_text(errors="replace").splitlines()[-5:])


def _options(folder: Path, precision: str, steps: int) -> list[str]:
    """Write a tiny encoder and a text; return the options of a run on them."""
    rng = random.Random(0)
    words = sorted({"".join(rng.choices("aeioulmnrst", k=rng.randint(2, 7))) for _ in range(300)})
    text, vocabulary, model = folder / "text.txt", folder / "vocab.txt", folder / "model"
    text.write_text("".join(" ".join(rng.choices(words, k=rng.randint(3, 12))) + "\n" for _ in range(300)))
    vocabulary.write_text("".join(piece + "\n" for piece in ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *words]))
    tokenizer = BertTokenizer(str(vocabulary), model_max_length=32)
    torch.manual_seed(0)
    sizes = {  # the compiled kernels take them
        "hidden_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "intermediate_size": 96,
        "max_position_embeddings": 32,
    }
    config = BertConfig(vocab_size=len(tokenizer), initializer_range=0.3, **sizes)  # type: ignore[arg-type]
    BertModel(config).save_pretrained(model)
    tokenizer.save_pretrained(model)
    settings = {
        "data": text,
        "model": model,
        "precision": precision,
        "device": "cpu",
        "max-steps": steps,
        "batch-size": 8,
        "learning-rate": 1e-3,
        "warmup-ratio": 0.1,
        "weight-decay": 0.01,
        "log-every": 1,
        "eval-every": 7,
        "save-every": SAVE_EVERY,
    }
    return [word for name, value in settings.items() for word in (f"--{name}", str(value))]


def main(
    kills: Annotated[int, typer.Option(help="SIGKILLs for each precision.", min=3)] = 100,
    precisions: Annotated[str, typer.Option(help="fp32, bf16, or both separated by a comma.")] = "fp32,bf16",
    seed: Annotated[int, typer.Option(help="Decides where the kills are aimed.")] = 1,
    count: Annotated[int, typer.Option("--processes", help="Of the run; a random one is killed.", min=1)] = 1,
) -> None:
    """Torture a run in each precision; status 1 if anything was lost."""
    verdicts = []
    for precision in precisions.split(","):
        with tempfile.TemporaryDirectory() as folder:
            verdicts.append(torture(Path(folder), precision, kills, seed, count))
            typer.echo(str(verdicts[-1]))
    raise typer.Exit(any(verdict.failures for verdict in verdicts))


if __name__ == "__main__":
    typer.run(main)
