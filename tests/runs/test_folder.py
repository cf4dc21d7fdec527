from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest

from simcse_train.errors import InputError
from simcse_train.runs.folder import check_space

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
