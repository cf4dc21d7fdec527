"""Whole runs on several processes: the same run as on one, and nothing lost when a process is."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from accelerate.utils import is_bf16_available
from safetensors.torch import load_file

from simcse_train import launcher, train
from simcse_train.config import make_config
from simcse_train.encoders.loading import load_encoder
from simcse_train.encoders.saving import save_encoder
from simcse_train.runs.folder import checkpoint_path, checkpoints
from simcse_train.runs.metrics import read_metrics
from simcse_train.training import monitor
from tests.launch import command_line, finish, launch, run

EXAMPLES = Path(__file__).parent.parent.parent / "examples"
# Points of Spearman by which rounding may change it: it exchanges two of the 483 pairs whose cosines are nearly equal.
EXCHANGE = 0.0052
RUNS: dict[str, dict[str, Any]] = {
    "plain": {"max_steps": 30, "warmup_ratio": 0.1, "eval": EXAMPLES / "pairs.tsv"},
    "parts": {"micro_batch_size": 3, "max_steps": 16},  # 16 steps pass the last short batch of an epoch
    "queue": {"objective": "queue", "mask_similar": 0.9, "queue_size": 11, "momentum": 0.5, "max_steps": 6},
    "relational": {"objective": "relational", "neighbours": 3, "max_steps": 6},
    "neighbours": {"objective": "neighbours", "neighbours": 3, "view": "dropout", "max_steps": 6},
}


def options(text: Path, model: Path, output: Path, **changes: Any) -> list[str]:
    base: dict[str, Any] = {
        "batch_size": 8,
        "max_length": 16,
        "learning_rate": 1e-3,
        "log_every": 1,
        "save_every": 5,
        "eval_every": 20,
    }
    base |= {"data": text, "model": model, "output": output, "objective": "ntxent", "precision": "fp32"}
    base |= {"device": "cpu", "pooling": "mean", "keep": 99} | changes
    return [word for name, value in base.items() for word in (f"--{name.replace('_', '-')}", str(value))]


def bits(run: Path, step: int) -> dict[str, bytes]:
    folder = checkpoint_path(run, step)
    names = ("encoder/model.safetensors", "optimizer.safetensors")
    return {name: (folder / name).read_bytes() for name in names}


def distance(one: Path, other: Path) -> float:
    """Return how far the weights of two runs or checkpoints are apart, relative to their length.

    Of all matrices and vectors the most. The bias of an attention's keys is left out: it changes no softmax, so that
    its gradient is nothing but rounding, which AdamW scales up to full steps.
    """
    a, b = (load_file(run / "encoder" / "model.safetensors") for run in (one, other))
    lengths = {name: float(tensor.norm()) for name, tensor in a.items() if not name.endswith("key.bias")}
    return max(float((a[name] - b[name]).norm()) / max(length, 1.0) for name, length in lengths.items())


def measures(run: Path) -> list[dict[str, float]]:
    """Return what was measured at each evaluation, apart from what jumps when two cosines are nearly equal."""
    lines = [line for line in read_metrics(run) if "alignment" in line]
    return [
        {k: line[k] for k in ("alignment", "uniformity", "neighbour_contrast", "score") if k in line} for line in lines
    ]


def nearly(measured: dict[str, float]) -> dict[str, Any]:
    return {
        name: pytest.approx(value, rel=0 if name == "score" else 1e-3, abs=4 * EXCHANGE if name == "score" else 1e-5)
        for name, value in measured.items()
    }


def wait_for(path: Path, processes: list[BaseProcess]) -> None:
    while not path.exists():
        assert all(process.is_alive() for process in processes)
        time.sleep(0.01)


@pytest.mark.parametrize("name", RUNS)
def test_a_run_does_not_depend_on_the_number_of_processes(name: str, text: Path, tiny: Path, tmp_path: Path) -> None:
    steps = RUNS[name]["max_steps"]
    for processes in (1, 2, 4) if name == "plain" else (1, 2):
        command = options(text, tiny, tmp_path / str(processes), **RUNS[name])
        assert run(processes, command_line, tmp_path / f"{processes}.txt", *command) == [0] * processes
        last, alone = (
            checkpoint_path(tmp_path / n, steps) for n in (str(processes), "1")
        )  # the export may be the start
        assert distance(last, alone) < 1e-5
        losses = [
            [line["loss"] for line in read_metrics(tmp_path / n) if "loss" in line] for n in ("1", str(processes))
        ]
        assert losses[1] == pytest.approx(losses[0], rel=1e-3, abs=1e-5)
        assert len(losses[1]) == steps  # one process logs
        screen = (tmp_path / f"{processes}.txt").read_text()
        assert screen.count("Verdict: ") == 1  # and prints
        assert measures(tmp_path / str(processes)) == [nearly(measured) for measured in measures(tmp_path / "1")]
    before = load_file(tiny / "model.safetensors")
    after = load_file(checkpoint_path(tmp_path / "1", steps) / "encoder" / "model.safetensors")
    assert sum(float((after[key] - before[key]).square().sum()) for key in after) > 1e-3


def train_from_python(text: Path, tiny: Path, folder: Path) -> None:
    (folder / "pairs.tsv").write_text("a man\tthe man\t5\na cat\tguitar\t0\na dog\tthe dog runs\t3\n")
    scores = iter([10.0, 30.0, 20.0])  # the best at step 1
    setattr(monitor, "similarity_score", lambda *_: next(scores))  # noqa: B010 (mypy refuses the plain assignment)
    given = {"data": text, "model": tiny, "output": folder / "run", "batch_size": 8, "max_steps": 2, "eval_every": 1}
    found = train(make_config({**given, "learning_rate": 1e-2, "device": "cpu", "eval": folder / "pairs.tsv"}))
    encoder = load_encoder(found.folder)
    same = [torch.equal(*pair) for pair in zip(found.encoder.parameters(), encoder.parameters(), strict=True)]
    record = {"same": all(same), "before": found.before["score"], "after": found.after["score"]}
    (folder / f"{launcher.rank()}.json").write_text(json.dumps(record))


def test_every_process_gets_the_finished_run(text: Path, tiny: Path, tmp_path: Path) -> None:
    assert run(2, train_from_python, text, tiny, tmp_path) == [0, 0]
    for rank in range(2):
        found = json.loads((tmp_path / f"{rank}.json").read_text())
        assert found == {"same": True, "before": 10.0, "after": 30.0}


def test_processes_evaluate_together_and_one_prints(tiny: Path, tmp_path: Path) -> None:
    for processes in (1, 2):
        screen = tmp_path / f"{processes}.txt"
        asked = ["evaluate", str(tiny), "--data", str(EXAMPLES / "pairs.tsv"), "--json"]
        assert run(processes, command_line, screen, *asked) == [0] * processes
    screens = [(tmp_path / f"{processes}.txt").read_text().splitlines() for processes in (1, 2)]
    assert screens[1][:-1] == screens[0][:-1]
    alone, together = (json.loads(screen[-1])["pairs"] for screen in screens)
    assert together == {**alone, "score": pytest.approx(alone["score"], abs=EXCHANGE)}


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_signal_to_any_process_stops_all_and_the_resumed_run_ends_with_the_same_bits(
    precision: str, text: Path, tiny: Path, tmp_path: Path
) -> None:
    if precision == "bf16" and not is_bf16_available(True):
        pytest.skip("no bfloat16 here")
    common = {"precision": precision, "max_steps": 60, "pooling": "cls"}
    screen, stopped = tmp_path / "screen.txt", tmp_path / "stopped"
    assert run(2, command_line, screen, *options(text, tiny, tmp_path / "whole", **common)) == [0, 0]
    processes = launch(2, command_line, screen, *options(text, tiny, stopped, **common))
    wait_for(checkpoint_path(stopped, 5), processes)
    assert processes[1].pid is not None
    os.kill(processes[1].pid, signal.SIGTERM)  # not the main process
    assert finish(processes) == [143, 143]
    last = f"Stopped. To continue: torchrun --nproc-per-node 2 -m simcse_train --resume {stopped}"
    assert screen.read_text().splitlines()[-1] == last
    step = int(checkpoints(stopped)[-1].name.removeprefix("step-"))
    assert 5 <= step < 60
    assert run(2, command_line, screen, "--resume", str(stopped)) == [0, 0]
    assert bits(stopped, 60) == bits(tmp_path / "whole", 60)
    assert not list(stopped.rglob("*.partial"))


@pytest.mark.parametrize("victim", [0, 1])
def test_a_killed_process_ends_the_others_and_the_run_goes_on_with_another_number_of_them(
    victim: int, text: Path, tiny: Path, tmp_path: Path
) -> None:
    screen, killed = tmp_path / "screen.txt", tmp_path / "killed"
    processes = launch(2, command_line, screen, *options(text, tiny, killed, max_steps=2000))
    wait_for(checkpoint_path(killed, 5), processes)
    processes[victim].kill()
    statuses = finish(processes)
    assert statuses[victim] == -signal.SIGKILL
    assert statuses[1 - victim] == 1
    (line,) = (line for line in screen.read_text().splitlines() if line.startswith(f"Process {victim} of 2 (on "))
    assert line.endswith(f"To continue: torchrun --nproc-per-node 2 -m simcse_train --resume {killed}")
    step = int(checkpoints(killed)[-1].name.removeprefix("step-"))
    longer = ["--resume", str(killed)]
    processes = launch(1, command_line, screen, *longer)
    wait_for(checkpoint_path(killed, step + 5), processes)
    processes[0].terminate()
    assert finish(processes) == [143]
    assert "a run of 2 processes, now 1: the result may differ in its last bits" in screen.read_text()


def given_other_settings(folder: Path, text: Path, tiny: Path, name: str) -> None:
    rank = launcher.rank()
    changes: dict[str, Any] = {}
    if rank == 1:
        if name in ("data", "eval"):
            own = (text if name == "data" else EXAMPLES / "pairs.tsv").read_text()
            (folder / "other.txt").write_text(own + ("One line more.\n" if name == "data" else "a cat\ta dog\t1.0\n"))
            changes = {name: folder / "other.txt"}
        elif name == "model":
            encoder, tiny = load_encoder(tiny), folder / "model"
            tiny.mkdir()
            save_encoder(encoder, tiny)
            prompts = {"prompts": {"q": "a cat "}, "default_prompt_name": "q"}
            (tiny / "config_sentence_transformers.json").write_text(json.dumps(prompts))
        else:
            changes = {"batch_size": 6}
    given = {"max_steps": 2, "eval": EXAMPLES / "pairs.tsv"} | changes
    command_line(folder / f"{rank}.txt", *options(text, tiny, folder / "run", **given))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("data", "the content of --data"),
        ("eval", "the content of --eval"),
        ("model", "its tokenizer"),
        ("batch", "--batch-size 6, not 8"),
    ],
)
def test_processes_that_are_given_different_things_are_told_before_the_first_step(
    name: str, message: str, text: Path, tiny: Path, tmp_path: Path
) -> None:
    assert run(2, given_other_settings, tmp_path, text, tiny, name) == [2, 2]
    screen = (tmp_path / "0.txt").read_text()
    assert f"Process 1 was not given the same as process 0: {message}" in screen
    assert (tmp_path / "1.txt").read_text() == ""
    assert not (tmp_path / "run").exists()


def test_torchrun_starts_a_killed_run_again_from_its_last_checkpoint(text: Path, tiny: Path, tmp_path: Path) -> None:
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--max-restarts", "3"]
    torchrun += ["--rdzv-backend", "c10d", "--rdzv-endpoint", "localhost:0"]
    # In a folder that is named after the time, which must be one folder and the same after a restart.
    words = options(text, tiny, tmp_path, max_steps=40)
    place = words.index("--output")
    command = [*torchrun, "-m", "simcse_train", *words[:place], *words[place + 2 :]]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)}
    with (tmp_path / "screen.txt").open("w") as screen:
        started = subprocess.Popen(command, cwd=tmp_path, env=environment, stdout=screen, stderr=screen)
    try:
        runs: list[Path] = []
        while not runs or not checkpoint_path(runs[0], 5).exists():
            assert started.poll() is None, (tmp_path / "screen.txt").read_text()
            runs = list((tmp_path / "runs").glob("*"))
            time.sleep(0.02)
        _kill_one_worker(started.pid)
        assert started.wait(300) == 0, (tmp_path / "screen.txt").read_text()
    finally:
        started.kill()
    assert [path.name for path in (tmp_path / "runs").iterdir()] == [runs[0].name]
    assert checkpoint_path(runs[0], 40).exists()
    assert "Continuing from " in (tmp_path / "screen.txt").read_text()
    steps = [line["step"] for line in read_metrics(runs[0]) if "loss" in line]
    assert steps == list(range(1, 41))
    assert json.loads((checkpoint_path(runs[0], 40) / "state.json").read_text())["processes"] == 2


def _kill_one_worker(of_launcher: int) -> None:
    workers = [child for child in psutil.Process(of_launcher).children() if child.environ().get("RANK") == "1"]
    workers[0].kill()


@pytest.mark.slow
def test_of_two_machines_one_is_lost_and_both_continue(text: Path, tiny: Path, tmp_path: Path) -> None:
    """Two launchers on one machine stand for two machines."""

    def start(*arguments: str) -> list[subprocess.Popen[bytes]]:
        with socket.socket() as free:
            free.bind(("localhost", 0))
            endpoint = f"localhost:{free.getsockname()[1]}"
        torchrun = [sys.executable, "-m", "torch.distributed.run", "--nnodes", "2", "--nproc-per-node", "1"]
        torchrun += ["--rdzv-backend", "c10d", "--rdzv-endpoint", endpoint, "--rdzv-id", "test", "-m", "simcse_train"]
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)}
        started = []
        for machine in range(2):
            with (tmp_path / f"{machine}.txt").open("a") as screen:
                command = [*torchrun, *arguments]
                started.append(subprocess.Popen(command, env=environment, stdout=screen, stderr=screen))
        return started

    whole, lost = tmp_path / "whole", tmp_path / "lost"
    assert [one.wait(300) for one in start(*options(text, tiny, whole, max_steps=200))] == [0, 0]
    machines = start(*options(text, tiny, lost, max_steps=200))
    while not checkpoint_path(lost, 5).exists():
        assert all(one.poll() is None for one in machines)
        time.sleep(0.02)
    (worker,) = psutil.Process(machines[1].pid).children()
    machines[1].kill()
    worker.kill()
    machines[1].wait()
    assert machines[0].wait(60) == 1
    survivor = (tmp_path / "0.txt").read_text() + (tmp_path / "1.txt").read_text()
    assert "of 2 (on " in survivor
    assert f"--resume {lost}" in survivor
    assert [one.wait(300) for one in start("--resume", str(lost))] == [0, 0]
    assert bits(lost, 200) == bits(whole, 200)
