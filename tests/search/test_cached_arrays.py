from __future__ import annotations

import os
import threading
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from simcse_train.cache import cache_folder
from simcse_train.errors import InputError
from simcse_train.search.cached_arrays import cached_array, remember, remembered


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return cache_folder()


@pytest.mark.skipif(not hasattr(os, "posix_fallocate"), reason="not on this system")
def test_an_array_has_its_place_on_the_disk_before_it_is_written(cache: Path) -> None:
    """A mapped file that finds none kills the process."""

    def write(out: NDArray[np.float32]) -> None:
        (partial,) = cache.glob(".x-*.partial")
        assert partial.stat().st_blocks * 512 >= out.nbytes > 10**6
        out[:] = 1

    cached_array("x", 1, (1000, 300), np.float32, write)


def test_a_failed_computation_leaves_nothing_and_a_second_caller_waits_for_the_first(cache: Path) -> None:
    def fail(out: NDArray[np.float32]) -> None:
        raise RuntimeError("stopped")

    with pytest.raises(RuntimeError):
        cached_array("x", 1, (2, 3), np.float32, fail)
    assert not [path for path in cache.iterdir() if path.suffix != ".lock"]
    begun, released, calls = threading.Event(), threading.Event(), []

    def slow(out: NDArray[np.float32]) -> None:
        calls.append(1)
        begun.set()
        released.wait(20)
        out[:] = 7

    first = threading.Thread(target=cached_array, args=("x", 1, (2, 3), np.float32, slow))
    first.start()
    begun.wait(20)
    results: list[NDArray[np.float32]] = []
    second = threading.Thread(target=lambda: results.append(cached_array("x", 1, (2, 3), np.float32, slow)))
    second.start()
    released.set()
    first.join()
    second.join()
    assert len(calls) == 1
    assert results[0].tolist() == [[7, 7, 7]] * 2


def test_a_damaged_array_is_named(cache: Path) -> None:
    cached_array("x", 1, (2, 3), np.float32, lambda out: out.fill(1))
    (path,) = cache.glob("x-*.npy")
    path.write_bytes(path.read_bytes()[:-4])
    with pytest.raises(InputError, match=f"{path.name} cannot be read.*Delete that file"):
        cached_array("x", 1, (2, 3), np.float32, lambda out: out.fill(1))


def test_an_array_is_remembered_by_name_and_key(cache: Path) -> None:
    assert remembered("x", [1], (), np.float64) is None
    remember("x", [1], np.array(0.25))
    found = remembered("x", [1], (), np.float64)
    assert found is not None
    assert float(found) == 0.25
    assert remembered("x", [2], (), np.float64) is None
    assert remembered("y", [1], (), np.float64) is None
    assert remembered("x", [1], (1,), np.float64) is None
    assert remembered("x", [1], (), np.float32) is None
    remember("x", [1], np.array([[1.5]], np.float32))
    second = remembered("x", [1], (1, 1), np.float32)
    assert second is not None
    assert second.tolist() == [[1.5]]
    assert not list(cache.glob(".*.partial"))


def test_a_cache_that_cannot_be_used_costs_only_time(cache: Path) -> None:
    remember("x", 1, np.ones((2, 3)))
    (path,) = cache.glob("x-*.npy")
    whole = path.read_bytes()
    bad_headers = (whole.replace(b"'descr'", found) for found in (b"'desc\\'", b"(((((((", b"{'descr"))
    for content in (b"", whole[:-4], b"\0" * len(whole), *bad_headers):
        path.write_bytes(content)
        assert remembered("x", 1, (2, 3), np.float64) is None
    remember("x", 1, np.full((2, 3), np.nan))
    assert remembered("x", 1, (2, 3), np.float64) is None
    remember("x", 1, np.ones((2, 3)))
    assert path.read_bytes() == whole
    path.unlink()
    for lock in cache.iterdir():
        lock.unlink()
    cache.rmdir()
    cache.write_text("no folder")
    remember("x", 1, np.ones((2, 3)))
    assert remembered("x", 1, (2, 3), np.float64) is None
    assert cache.read_text() == "no folder"
