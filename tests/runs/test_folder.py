from __future__ import annotations

import shutil
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from pathlib import Path
from types import SimpleNamespace

import pytest

from simcse_train.config import make_config
from simcse_train.errors import InputError
from simcse_train.runs import folder
from simcse_train.runs.folder import CONFIG, LOCK, check_space, new_run_folder

MIB = 2**20


@pytest.fixture
def free(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """Let the disk have so many MiB free."""

    def set_free(mib: int) -> None:
        monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=mib * MIB))

    return set_free


def test_a_disk_that_cannot_hold_the_checkpoints_is_refused_before_training(
    tmp_path: Path, free: Callable[[int], None]
) -> None:
    # 10 MiB of weights: 30 in each of the two checkpoints kept and of the one being written, and 10 of the export.
    free(100)
    check_space(tmp_path, 10 * MIB, 2)
    free(99)
    with pytest.raises(InputError, match="--output .*99 MiB free.*need 100 MiB.*--keep"):
        check_space(tmp_path, 10 * MIB, 2)


def test_what_a_resumed_run_has_on_the_disk_counts_as_free(tmp_path: Path, free: Callable[[int], None]) -> None:
    for name, mib in (("checkpoints/step-00000001/x", 3), ("encoder/y", 1)):
        path = tmp_path / name
        path.parent.mkdir(parents=True)
        path.write_bytes(bytes(mib * MIB))
    free(96)
    check_space(tmp_path, 10 * MIB, 2)


def test_runs_that_begin_in_the_same_second_have_folders_of_their_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(folder, "started_at", lambda: datetime(2026, 11, 30, 12, 0, 0))
    config = make_config({"data": "t.txt"})
    with ThreadPoolExecutor(8) as pool:
        runs = list(pool.map(lambda _: new_run_folder(config), range(24)))
    names = ["starter-20261130-120000", *(f"starter-20261130-120000-{number}" for number in range(2, 25))]
    assert sorted(map(str, runs)) == sorted(f"runs/{name}" for name in names)
    assert all((run / LOCK).exists() for run in runs)
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "x")  # under a launcher all attempts have the same folder
    for run in sorted(runs):
        (run / CONFIG).touch()
    with pytest.raises(InputError, match=r"runs/starter-20261130-120000 already holds a run.*, or continue that run: "):
        new_run_folder(config)


def test_a_folder_that_holds_no_run_is_not_said_to_be_continued(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").touch()
    with pytest.raises(InputError, match=r"is not an empty folder\. Choose another folder\.$"):
        new_run_folder(make_config({"data": "t.txt", "output": str(tmp_path)}))


@pytest.mark.parametrize("is_link", [True, False])
def test_runs_that_is_no_folder_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_link: bool) -> None:
    monkeypatch.chdir(tmp_path)
    if is_link:
        Path("runs").symlink_to("a disk that is away")
    else:
        Path("runs").touch()
    with pytest.raises(InputError, match=r"^--output runs/starter-.* can't be written: "):
        new_run_folder(make_config({"data": "t.txt"}))


@pytest.mark.parametrize("name", ["start/notes.txt", "thesis.partial"])
def test_what_a_user_keeps_in_a_folder_is_no_leftover_of_a_run(tmp_path: Path, name: str) -> None:
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_text("precious")
    with pytest.raises(InputError, match="is not an empty folder"):
        new_run_folder(make_config({"data": "t.txt", "output": str(tmp_path)}))
    assert (tmp_path / name).read_text() == "precious"


def test_a_run_is_named_after_the_folder_of_its_model_also_from_within(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "my-model").mkdir()
    monkeypatch.chdir(tmp_path / "my-model")
    assert new_run_folder(make_config({"data": "t.txt", "model": "."})).name.startswith("my-model-")
