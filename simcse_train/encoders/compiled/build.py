"""Compile the kernels with the system's C++ compiler, once for each source, compiler and processor.

The library is kept in the cache. Its name holds a digest of its content, so that a damaged file is seen before it is
loaded and compiled again, and it is renamed into place, so that two processes can compile at once.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import platform
import secrets
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import torch

from simcse_train.cache import cache_folder

logger = logging.getLogger(__name__)

SOURCES = Path(__file__).with_name("kernels")
# -ffast-math is left out: it would let the compiler assume that there are no infinities and no NaN.
FLAGS = ("-std=c++17", "-O3", "-fPIC", "-fno-math-errno", "-fno-trapping-math", "-ffp-contract=fast", "-Wno-psabi")
TIMEOUT = 300  # seconds


class CannotCompile(Exception):
    """The kernels cannot be compiled here; the message says why."""


def compiled_file(more_flags: Sequence[str] = ()) -> Path:
    """Return the compiled library, from the cache or made now; raises `CannotCompile`."""
    compiler = _find_compiler()
    command = [compiler, *FLAGS, *_flags_of_this_machine(), *more_flags]
    folder = cache_folder() / "kernels"
    try:
        key = _digest(json.dumps([source_digest(), command, _version(compiler), _processor()]).encode())
        for path in sorted(folder.glob(f"{key}-*.so")):
            if path.stem == f"{key}-{_digest(path.read_bytes())}":
                return path
            path.unlink(missing_ok=True)  # damaged
        logger.info("Compiling the kernels for this processor, once.")
        with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as name:
            made = Path(name) / "kernels.so"
            _run([*command, "-shared", str(SOURCES / "kernels.cpp"), "-o", str(made)])
            content = made.read_bytes()
        return _keep(folder, f"{key}-{_digest(content)}.so", content)
    except OSError as error:
        raise CannotCompile(f"{error.filename or folder}: {error.strerror or error}") from None


def source_digest() -> str:
    """Return a digest of the kernels' source."""
    return _digest(b"".join(path.read_bytes() for path in sorted(SOURCES.iterdir()) if path.is_file()))


def _find_compiler() -> str:
    wanted = os.environ.get("CXX")
    names = [wanted] if wanted else ["c++", "g++", "clang++"]
    found = next((path for name in names if (path := shutil.which(name))), None)
    if found is None:
        raise CannotCompile(f"there is no C++ compiler ({', '.join(names)})")
    return found


def _flags_of_this_machine() -> list[str]:
    x86 = platform.machine().lower() in ("x86_64", "amd64")
    flags = ["-march=native", "-mprefer-vector-width=512"] if x86 else ["-mcpu=native"]
    return [*flags, "-undefined", "dynamic_lookup"] if sys.platform == "darwin" else flags


def _version(compiler: str) -> str:
    return _run([compiler, "--version"])


def _processor() -> list[str]:
    """Return what code for this processor alone depends on."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text(encoding="utf-8", errors="replace").splitlines() if cpuinfo.exists() else []
    names = sorted({line for line in lines if line.startswith(("model", "cpu family", "CPU implementer", "CPU part"))})
    return [platform.machine(), *names, json.dumps(torch.cpu.get_capabilities(), sort_keys=True, default=str)]


def _run(command: list[str]) -> str:
    """Return the output of a program; raises `CannotCompile` with the first line of its errors."""
    environment = dict(os.environ)  # a copy: this may be a thread, and another one may change it meanwhile
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, errors="replace", timeout=TIMEOUT, check=False, env=environment
        )
    except subprocess.TimeoutExpired:
        raise CannotCompile(f"{command[0]} took more than {TIMEOUT} seconds") from None
    if done.returncode:
        errors = [line for line in done.stderr.splitlines() if "error" in line] or done.stderr.splitlines() or ["?"]
        raise CannotCompile(f"{command[0]} fails: {errors[0].strip()[:200]}")
    return done.stdout


def _keep(folder: Path, name: str, content: bytes) -> Path:
    """Write a file into the cache under its name, all of it or nothing."""
    folder.mkdir(parents=True, exist_ok=True)
    partial = folder / f"{name}.{secrets.token_hex(4)}.partial"
    try:
        partial.write_bytes(content)
        partial.replace(folder / name)
    finally:
        partial.unlink(missing_ok=True)
    return folder / name


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:24]
