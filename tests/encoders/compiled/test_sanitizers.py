"""The tests of the kernels with kernels that check every access to memory and all arithmetic on integers."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

FLAGS = "-fsanitize=address,undefined -fno-sanitize-recover=undefined -fno-omit-frame-pointer -g -O1"
TESTS = [str(Path(__file__).with_name(name)) for name in ("test_kernels.py", "test_noise.py", "test_stack.py")]


@pytest.mark.slow
def test_kernels_are_clean_under_the_address_and_undefined_behaviour_sanitizers() -> None:
    compiler = os.environ.get("CXX", "c++")
    libraries = []
    for name in ("libasan.so", "libstdc++.so"):  # the second: else an exception of torch ends the process
        asked = [compiler, f"-print-file-name={name}"]
        libraries.append(subprocess.run(asked, capture_output=True, text=True, check=False).stdout.strip())
        if not Path(libraries[-1]).is_absolute():
            pytest.skip(f"this compiler has no {name}")
    environment = os.environ | {
        "KERNEL_FLAGS": FLAGS,
        "LD_PRELOAD": " ".join(libraries),
        "ASAN_OPTIONS": "detect_leaks=0",  # Python itself keeps memory until it ends
        "UBSAN_OPTIONS": "print_stacktrace=1",
    }
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", *TESTS]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
