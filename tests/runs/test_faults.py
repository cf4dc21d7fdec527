"""What becomes of a run whose disk fills up, whose files go away, and that is stopped at odd moments."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from scripts.torture import SAVING, live, processes, torture
from simcse_train.cache import cache_folder
from simcse_train.data import batches as batches_module
from simcse_train.data.batches import two_views
from simcse_train.data.corpus import open_corpus
from simcse_train.encoders.loading import load_encoder
from simcse_train.errors import InputError, SaveError, Stopped, TrainingError
from simcse_train.export.folder import load_chosen
from simcse_train.manifest import damage
from simcse_train.report.verdict import measures_by_step
from simcse_train.runs.atomic import remove_leftovers, write_folder
from simcse_train.runs.checkpoint import find_checkpoint
from simcse_train.runs.folder import checkpoint_path, checkpoints
from simcse_train.runs.metrics import read_metrics
from simcse_train.training import finish as finish_module
from simcse_train.training import monitor
from simcse_train.training.start import resume, train
from tests.training.test_loop import bits, interrupted_at, settings

STEPS = 40


@pytest.fixture(scope="module")
def whole(text: Path, tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that nothing happened to."""
    return train(settings(text, tiny, tmp_path_factory.mktemp("runs") / "whole", max_steps=STEPS)).folder


class Life:
    """A process of the program, forked from one that has imported it."""

    def __init__(self, folder: Path, arguments: list[object], slow: float = 0.0) -> None:
        self.folder = folder
        self.phase = processes.RawValue("i")
        self.process = processes.Process(target=live, args=([str(a) for a in arguments], str(folder), self.phase, slow))
        self.process.start()

    def until(self, true: Callable[[], object]) -> None:
        while not true():
            assert self.process.is_alive(), self.said()
            time.sleep(0.001)

    def send(self, number: int) -> None:
        assert self.process.pid is not None
        os.kill(self.process.pid, number)

    def ends(self) -> int | None:
        """Wait for the end; return the exit status."""
        self.process.join(120)
        return self.process.exitcode

    def said(self) -> str:
        return (self.folder / "screen.txt").read_text(errors="replace")

    def last_paragraph(self) -> str:
        said = self.said().split("\r")[-1].strip()
        assert "Traceback" not in said
        return said.splitlines()[-1]


def options(text: Path, tiny: Path, run: Path, *more: object) -> list[object]:
    """Return the command line of the run that `whole` is."""
    files = [
        "--data",
        text,
        "--model",
        tiny,
        "--output",
        run,
        "--max-steps",
        STEPS,
        "--save-every",
        5,
        "--eval-every",
        6,
    ]
    return [*files, "--batch-size", 8, "--max-length", 16, "--learning-rate", 1e-3, "--log-every", 1, *more]


def left_over(*folders: Path) -> list[Path]:
    return [p for folder in folders for p in folder.rglob("*") if p.name.endswith((".partial", ".replaced"))]


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 20 MiB in `run`, where the process may mount one."""
    disk = tmp_path / "run"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=20m", "tmpfs", str(disk)], capture_output=True).returncode:
        pytest.skip("mounting a small disk needs the rights of root")
    yield disk
    subprocess.run(["umount", "--lazy", str(disk)], check=True)


def fill(disk: Path, left: int) -> Path:
    """Fill a disk up to so many bytes; return the file to remove again."""
    filler = disk / "filler"
    with filler.open("wb") as stream:
        stream.write(bytes(shutil.disk_usage(disk).free - left))
    return filler


@pytest.mark.parametrize("left", [0, 100_000])  # with 100 kB logging goes on and the checkpoint does not fit
def test_a_full_disk_ends_the_run_and_what_was_saved_goes_on_to_the_same_bits(
    left: int, whole: Path, text: Path, tiny: Path, small_disk: Path, tmp_path: Path
) -> None:
    run = small_disk / "x"
    life = Life(tmp_path, options(text, tiny, run, "--keep", 9), slow=0.001)
    life.until(lambda: len(checkpoints(run)) == 2)
    life.send(signal.SIGSTOP)
    filler = fill(small_disk, left)
    life.send(signal.SIGCONT)
    assert life.ends() == 1
    assert re.search("can't be written: .*No space left on device.*intact", life.last_paragraph())
    assert len(checkpoints(run)) >= 2
    assert all(damage(path) is None for path in checkpoints(run))
    assert not left_over(run)
    with pytest.raises(InputError, match="MiB free for it"):  # space is checked before it goes on, too
        resume(run, {})
    filler.unlink()
    assert bits(resume(run, {}).folder / "encoder") == bits(whole / "encoder")


def test_a_full_disk_at_the_export_ends_the_run_and_leaves_the_checkpoints(
    whole: Path, text: Path, tiny: Path, small_disk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = small_disk / "x"
    with monkeypatch.context() as patch:
        patch.setattr(finish_module, "load_chosen", lambda *args: (fill(small_disk, 50_000), load_chosen(*args))[1])
        with pytest.raises(SaveError, match="encoder can't be written: .*No space left.*intact"):
            train(settings(text, tiny, run, max_steps=STEPS))
    assert not (run / "encoder").exists()
    assert not left_over(run)
    (small_disk / "filler").unlink()
    assert bits(resume(run, {}).folder / "encoder") == bits(whole / "encoder")


def test_permission_lost_in_mid_run_ends_it_and_it_goes_on_when_it_is_back(
    whole: Path, text: Path, tiny: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    root = os.geteuid() == 0  # whom no permission stops, but a read-only mount does
    life = Life(tmp_path, options(text, tiny, run), slow=0.001)
    life.until(lambda: checkpoints(run))
    life.send(signal.SIGSTOP)
    if root:
        folder = str(run / "checkpoints")
        for command in (["--bind", folder, folder], ["-o", "remount,bind,ro", folder]):
            if subprocess.run(["mount", *command], capture_output=True).returncode:
                life.process.kill()
                pytest.skip("taking permission from root needs a read-only mount, which is not allowed here")
    else:
        (run / "checkpoints").chmod(0o500)
    life.send(signal.SIGCONT)
    try:
        assert life.ends() == 1
        assert (
            f"can't be {'written: Read-only file system' if root else 'written: Permission denied'}"
            in life.last_paragraph()
        )
        assert all(damage(path) is None for path in checkpoints(run))
    finally:
        if root:
            subprocess.run(["umount", "--lazy", str(run / "checkpoints")], check=True)
        else:
            (run / "checkpoints").chmod(0o700)
    assert bits(resume(run, {}).folder / "encoder") == bits(whole / "encoder")
    assert not left_over(run)


def test_a_run_folder_that_is_removed_ends_the_run_and_does_not_come_back(
    text: Path, tiny: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    life = Life(tmp_path, options(text, tiny, run), slow=0.001)
    life.until(lambda: checkpoints(run))
    life.send(signal.SIGSTOP)
    shutil.rmtree(run)
    life.send(signal.SIGCONT)
    assert life.ends() == 1
    assert str(run) in life.last_paragraph()
    assert not (run / "checkpoints").exists()


def at_step(monkeypatch: pytest.MonkeyPatch, step: int, happens: Callable[[], object]) -> None:
    """Let something happen in the middle of a step."""
    count = 0

    def counted(*args: Any, **more: Any) -> Any:
        nonlocal count
        count += 1
        if count == step:
            happens()
        return two_views(*args, **more)

    monkeypatch.setattr(batches_module, "two_views", counted)


def test_text_and_cache_deleted_in_mid_run_do_not_disturb_it(
    whole: Path, text: Path, tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = Path(shutil.copy(text, tmp_path / "own.txt"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))

    def lose() -> None:
        own.unlink()
        shutil.rmtree(tmp_path / "cache")

    at_step(monkeypatch, 3, lose)
    run = train(settings(own, tiny, tmp_path / "run", max_steps=STEPS))
    assert not own.exists()
    assert bits(run.folder / "encoder") == bits(whole / "encoder")


def test_a_run_goes_on_without_its_text_from_the_tokenised_copy_and_says_so(
    whole: Path,
    text: Path,
    tiny: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    own = Path(shutil.copy(text, tmp_path / "own.txt"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    with monkeypatch.context() as patch:
        interrupted_at(patch, 7)
        with pytest.raises(Stopped):
            train(settings(own, tiny, tmp_path / "run", max_steps=STEPS))
    away = own.rename(tmp_path / "away.txt")
    shutil.move(cache_folder(), tmp_path / "cache-away")
    with pytest.raises(InputError, match=r"own.txt: there is no such file.*--data"):
        resume(tmp_path / "run", {})
    with monkeypatch.context() as patch:
        interrupted_at(patch, 2)
        with pytest.raises(Stopped):
            resume(tmp_path / "run", {"data": [str(away)]})
    away.unlink()
    assert bits(resume(tmp_path / "run", {}).folder / "encoder") == bits(whole / "encoder")
    assert (
        "away.txt: there is no such file. Check the path. Continuing with the tokenised copy of the text in "
        f"{cache_folder()}" in caplog.text
    )


def test_text_that_changes_while_it_is_read_is_refused(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "grows.txt"
    path.write_text("one\ntwo\n")
    encoder = load_encoder(tiny)
    tokenizer = encoder.tokenizer
    tokenize = tokenizer.tokenize_rows

    def growing(*args: Any) -> Any:
        path.write_text("one\ntwo\nthree\n")
        return tokenize(*args)

    monkeypatch.setattr(tokenizer, "tokenize_rows", growing)
    with pytest.raises(InputError, match="changed while it was read"):
        open_corpus([str(path)], None, tokenizer, 16)


def test_what_a_dead_process_left_in_the_cache_is_swept_and_a_live_one_is_let_be(
    text: Path, tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    long = tmp_path / "long.txt"
    long.write_text("".join(f"the cat {i} runs\n" for i in range(300_000)))

    def building(number: int) -> bool:
        return len(list(cache_folder().glob("*.partial/sentences.arrow"))) == number

    lives = []
    for i in (1, 2):
        life = Life(tmp_path, options(long, tiny, tmp_path / f"run{i}", "--max-length", 15 + i))
        life.until(partial(building, i))
        life.send(signal.SIGSTOP)
        lives.append(life)
    lives[0].process.kill()
    lives[0].ends()
    open_corpus([str(text)], None, load_encoder(tiny).tokenizer, 15)
    assert len(left_over(cache_folder())) == 1
    lives[1].send(signal.SIGTERM)
    lives[1].send(signal.SIGCONT)
    assert lives[1].ends() == 143
    assert not left_over(cache_folder())


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP])
def test_a_signal_before_training_begins_leaves_nothing(number: signal.Signals, tiny: Path, tmp_path: Path) -> None:
    long = tmp_path / "long.txt"
    long.write_text("".join(f"the cat {i} runs\n" for i in range(300_000)))
    life = Life(tmp_path, options(long, tiny, tmp_path / "run"))
    life.until(lambda: left_over(tmp_path / "cache"))
    life.send(number)
    assert life.ends() == 128 + number
    assert life.last_paragraph() == "Stopped at once. Start the run again."
    assert not (tmp_path / "run").exists()
    assert not left_over(tmp_path / "cache")


def test_a_run_killed_while_its_text_is_tokenised_starts_from_the_beginning(
    whole: Path, text: Path, tiny: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    life = Life(tmp_path, options(text, tiny, run), slow=0.02)
    life.until(lambda: (run / "config.yaml").exists())
    life.process.kill()
    life.ends()
    assert not checkpoints(run)
    with pytest.raises(InputError, match="--temperature 0.1 differs"):
        resume(run, {"temperature": 0.1})
    again = Life(tmp_path, ["--resume", run])
    assert again.ends() == 0
    assert "was stopped before its first checkpoint: starting from the beginning" in again.said()
    assert bits(run / "encoder") == bits(whole / "encoder")


def test_a_run_that_died_before_its_first_checkpoint_is_logged_anew(
    whole: Path, text: Path, tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def die() -> None:
        raise MemoryError

    run = tmp_path / "run"
    with monkeypatch.context() as patch:
        at_step(patch, 3, die)
        with pytest.raises(MemoryError):
            train(settings(text, tiny, run, max_steps=STEPS))
    assert not checkpoints(run)
    assert [line["step"] for line in read_metrics(run)] == [0, 1, 2]
    resume(run)
    assert [line["step"] for line in read_metrics(run)] == list(range(STEPS + 1))
    assert bits(run / "encoder") == bits(whole / "encoder")


def test_an_interrupt_at_once_in_a_save_leaves_nothing_half_written(
    whole: Path, text: Path, tiny: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    life = Life(tmp_path, options(text, tiny, run), slow=0.02)
    life.until(lambda: checkpoints(run) and life.phase.value == SAVING and left_over(run))
    life.send(signal.SIGINT)
    time.sleep(0.05)  # two signals of one kind that wait together are one
    life.send(signal.SIGINT)
    assert life.ends() == 130
    assert not left_over(run)
    assert all(damage(path) is None for path in checkpoints(run))
    assert bits(resume(run, {}).folder / "encoder") == bits(whole / "encoder")


def replace_until(folder: str, changes: int) -> None:
    """Replace a folder, and be killed before the given change to the disk."""
    seen = 0

    def kill(event: str, details: tuple[Any, ...]) -> None:
        nonlocal seen
        if event in ("os.rename", "os.remove", "os.rmdir", "os.mkdir", "open") and str(details[0]).startswith(folder):
            seen += 1
            if seen == changes:
                os.kill(os.getpid(), signal.SIGKILL)

    def write(new: Path) -> None:
        for name in "ab":
            (new / name).write_text("new")

    sys.addaudithook(kill)
    write_folder(Path(folder) / "x", write)


def test_a_folder_that_is_replaced_is_the_old_or_the_new_one_wherever_the_kill_falls(tmp_path: Path) -> None:
    found = []
    for changes in range(1, 100):
        folder = tmp_path / str(changes)
        (folder / "x").mkdir(parents=True)
        for name in "ab":
            (folder / "x" / name).write_text("old")
        process = processes.Process(target=replace_until, args=(str(folder), changes))
        process.start()
        process.join()
        remove_leftovers(folder)
        assert [p.name for p in folder.iterdir()] == ["x"]
        found.append({(folder / "x" / name).read_text() for name in "ab"})
        if process.exitcode == 0:
            break
    assert found[0] == {"old"}
    assert found[-1] == {"new"}
    assert all(len(content) == 1 for content in found)
    assert len(found) > 10


def test_a_checkpoint_saved_after_a_damaged_one_is_never_pruned_for_it(text: Path, tiny: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    train(settings(text, tiny, run, max_steps=10, eval_every=100))
    victim = checkpoints(run)[-1] / "optimizer.safetensors"
    victim.write_bytes(victim.read_bytes()[:-1])
    with pytest.MonkeyPatch.context() as patch:
        interrupted_at(patch, 2)
        with pytest.raises(Stopped):
            resume(run, {"keep": 1})
    assert [p.name for p in checkpoints(run)] == ["step-00000007"]
    assert find_checkpoint(run)[0].name == "step-00000007"


def test_going_on_from_an_older_checkpoint_leaves_the_later_ones_until_the_next_is_saved(
    text: Path, tiny: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run = tmp_path / "run"
    train(settings(text, tiny, run, max_steps=15, keep=5, eval_every=100))
    seen: list[str] = []
    with pytest.MonkeyPatch.context() as patch:
        at_step(patch, 2, lambda: seen.extend(p.name for p in checkpoints(run)))
        resume(run / "checkpoints" / "step-00000005", {"max_steps": 20})
    assert seen == ["step-00000005", "step-00000010", "step-00000015"]
    assert "Checkpoints after it, up to step-00000015, will be deleted when the next one is saved" in caplog.text
    assert [p.name for p in checkpoints(run)] == ["step-00000005", "step-00000010", "step-00000015", "step-00000020"]
    straight = train(settings(text, tiny, tmp_path / "straight", max_steps=20, eval_every=100))
    assert bits(run / "encoder") != bits(straight.folder / "encoder")  # five steps of it had the rates of a run of 15
    copied = shutil.copytree(checkpoints(run)[0], tmp_path / "copied")
    with pytest.raises(InputError, match="is not inside a run"):
        resume(copied, {})


def test_labelled_pairs_may_move_but_not_change(text: Path, tiny: Path, tmp_path: Path) -> None:
    pairs = tmp_path / "pairs.tsv"
    pairs.write_text("a man plays\tthe man plays\t5\na cat\tthe hill\t1\na dog runs\tdog in park\t3\n")
    train(settings(text, tiny, tmp_path / "run", max_steps=4, eval=str(pairs)))
    moved = pairs.rename(tmp_path / "moved.tsv")
    with pytest.raises(InputError, match="--eval .*pairs.tsv: there is no such file"):
        resume(tmp_path / "run", {"max_steps": 6})
    resume(tmp_path / "run", {"max_steps": 6, "eval": str(moved)})
    moved.write_text(moved.read_text().replace("5", "0"))
    with pytest.raises(InputError, match="--eval .*its content has changed"):
        resume(tmp_path / "run", {"max_steps": 8})


def test_an_export_that_lost_its_best_checkpoint_is_a_failure_of_the_run(
    text: Path, tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scores = iter([10.0, 30.0, *[20.0] * 5])  # the best at step 2
    monkeypatch.setattr(monitor, "similarity_score", lambda *_: next(scores))
    pairs = tmp_path / "pairs.tsv"
    pairs.write_text("a man plays\tthe man plays\t5\na cat\tthe hill\t1\na dog runs\tdog in park\t3\n")
    run = train(settings(text, tiny, tmp_path / "run", max_steps=12, eval=str(pairs), eval_every=2, keep=1)).folder
    best = checkpoints(run)[0]
    assert best != checkpoints(run)[-1]
    shutil.rmtree(best)
    with pytest.raises(TrainingError, match="trained, but its encoder can't be exported.*--checkpoint last"):
        resume(run, {})


def test_metrics_that_were_damaged_do_not_keep_a_run_from_going_on(text: Path, tiny: Path, tmp_path: Path) -> None:
    run = train(settings(text, tiny, tmp_path / "run", max_steps=4)).folder
    for harm in (b"\xff\xfe\n", b"[]\n", b'{"step": "x"}\n', b'{"st', bytes(100)):
        with (run / "metrics.jsonl").open("ab") as stream:
            stream.write(harm)
        resume(run, {})


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_run_killed_again_and_again_ends_with_the_same_bits(precision: str, tmp_path: Path) -> None:
    verdict = torture(tmp_path, precision, kills=6, seed=3)
    assert not verdict.failures
    assert verdict.kills.total() == 6
    assert verdict.kills["saving"] > 0
    assert verdict.half_written > 0


def test_a_kill_before_the_first_checkpoint_of_a_run_that_went_on_from_an_older_one_loses_no_lines(
    text: Path, tiny: Path, tmp_path: Path
) -> None:
    def die() -> None:
        raise MemoryError

    run = train(settings(text, tiny, tmp_path / "run", max_steps=15, keep=9, eval_every=100)).folder
    lines = read_metrics(run)
    for first, log_every in ((5, 1), (10, 2), (5, 3)):
        with pytest.MonkeyPatch.context() as patch, pytest.raises(MemoryError):
            at_step(patch, 4, die)
            resume(checkpoint_path(run, first), {"log_every": log_every})
        steps = [*range(first + 1), *(step for step in range(first + 1, first + 4) if step % log_every == 0)]
        assert [line["step"] for line in read_metrics(run)] == steps
    assert resume(run).after == measures_by_step(lines)[15]
    assert read_metrics(run) == lines
    resume(checkpoint_path(run, 5), {"max_steps": 16, "save_every": 100})
    assert [line["step"] for line in read_metrics(run)] == list(range(17))
    assert not list(run.glob(".metrics*"))
