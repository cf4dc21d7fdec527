"""Compiling: once, atomically, and without harm where it is impossible."""

from __future__ import annotations

import logging
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from simcse_train.encoders import acceptance
from simcse_train.encoders.compiled import build, library
from simcse_train.encoders.compiled.build import CannotCompile, compiled_file
from simcse_train.encoders.loading import load_encoder
from tests.encoders.families import make_family


@pytest.fixture
def cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Path]:
    """An empty cache, and kernels of which nothing is loaded."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(build, "FLAGS", ("-std=c++17", "-O0", "-fPIC", "-Wno-psabi"))  # a second instead of several
    library._library.cache_clear()
    yield tmp_path / "simcse-train" / "kernels"
    library._library.cache_clear()


def test_kernels_are_compiled_once_and_again_if_the_file_is_damaged(
    cache: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    made = compiled_file()
    assert [path.name for path in cache.iterdir()] == [made.name]
    caplog.clear()
    assert compiled_file() == made
    assert not caplog.text
    content = made.read_bytes()
    for damaged in (content[:1000], content[:-1] + bytes([content[-1] ^ 1])):
        made.write_bytes(damaged)
        assert compiled_file().read_bytes() == content
    assert library.load(made).attention_scratch(32, 16) > 0


def test_who_needs_the_kernels_waits_for_the_thread_that_compiles_them(
    cache: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    library.compile_meanwhile()
    assert library.library().attention_scratch(32, 16) > 0
    assert caplog.text.count("Compiling") == 1
    assert len(list(cache.iterdir())) == 1


def test_two_processes_can_compile_at_once(cache: Path) -> None:
    code = "from simcse_train.encoders.compiled.build import compiled_file; print(compiled_file())"
    both = [subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) for _ in range(2)]
    (path,) = {process.communicate()[0].strip() for process in both}
    assert [str(found) for found in cache.iterdir()] == [path]
    assert library.load(Path(path)).attention_scratch(32, 16) > 0


def test_without_a_compiler_or_with_one_that_fails_the_present_computation_is_used(
    cache: Path, small: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoder = load_encoder(small)
    monkeypatch.setenv("PATH", "")
    monkeypatch.delenv("CXX", raising=False)
    assert acceptance.use_kernels(encoder, "fp32") == "there is no C++ compiler (c++, g++, clang++)"
    monkeypatch.setenv("CXX", "no-such-compiler")
    assert acceptance.use_kernels(encoder, "fp32") == "there is no C++ compiler (no-such-compiler)"
    monkeypatch.undo()
    monkeypatch.setenv("XDG_CACHE_HOME", str(cache.parent.parent))
    monkeypatch.setattr(build, "FLAGS", ("--no-such-flag",))
    library._library.cache_clear()
    reason = acceptance.use_kernels(encoder, "fp32")
    assert "fails: " in reason and "no-such-flag" in reason
    assert encoder.stack is None
    assert not cache.exists() or not list(cache.iterdir())


def test_a_cache_that_cannot_be_written_is_named(cache: Path) -> None:
    cache.parent.mkdir(parents=True)
    cache.write_text("a file where the folder should be")
    with pytest.raises(CannotCompile, match="kernels: "):
        compiled_file()


@pytest.mark.parametrize("family", ["mpnet", "albert"])
def test_other_families_stay_as_they_are(family: str, tmp_path: Path) -> None:
    encoder = load_encoder(make_family(family, tmp_path))
    assert acceptance.use_kernels(encoder, "fp32")
    assert encoder.stack is None


def test_sizes_activations_and_precisions_that_kernels_do_not_have_are_named(small: Path, tiny: Path) -> None:
    assert "sizes" in acceptance.use_kernels(load_encoder(tiny), "fp32")
    encoder = load_encoder(small)
    assert "fp32 or bf16" in acceptance.use_kernels(encoder, "fp16")
    encoder.model.config.hidden_act = "relu"
    assert "not relu" in acceptance.use_kernels(encoder, "fp32")
    assert "packed" in acceptance.use_kernels(load_encoder(small, packed=False), "fp32")


def test_kernels_that_compute_something_else_are_not_used(small: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    encoder = load_encoder(small)
    assert acceptance.use_kernels(encoder, "bf16") == ""
    model: Any = encoder.model
    model.encoder.layer[1].attention.self.num_attention_heads = 2
    assert acceptance.use_kernels(encoder, "bf16")
    assert encoder.stack is None
