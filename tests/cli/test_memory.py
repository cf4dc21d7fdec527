from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

PRODUCTS = """
import sys
from pathlib import Path
from simcse_train.cli import main
sys.argv = ["simcse-train", "--version"]
try:
    main()
except SystemExit:
    pass
import torch
def resident():
    return int(Path("/proc/self/status").read_text().split("VmRSS:")[1].split()[0]) // 1024
weights = torch.randn(256, 256, dtype=torch.bfloat16)
def multiply(sizes):
    for tokens in sizes:
        torch.nn.functional.linear(torch.randn(tokens, 256, dtype=torch.bfloat16), weights)
multiply(range(500, 520))
before = resident()
multiply(range(520, 920))
print(resident() - before)
"""


LIMITS = """
import os, sys
from simcse_train.cli import main
sys.argv = ["simcse-train", "--version"]
try:
    main()
except SystemExit:
    pass
print(os.environ["LRU_CACHE_CAPACITY"], os.environ["ONEDNN_PRIMITIVE_CACHE_CAPACITY"])
"""


def growth(**environment: str) -> int:
    """Return by how many MiB a process of the command line grows with 400 shapes of a matrix product."""
    return int(run_python(PRODUCTS, environment)[-1])


def run_python(code: str, environment: dict[str, str]) -> list[str]:
    """Return the words that a program prints, with only these limits of compiled products in its environment."""
    kept = {name: value for name, value in os.environ.items() if not name.endswith("CACHE_CAPACITY")}
    done = subprocess.run(
        [sys.executable, "-c", code], env={**kept, **environment}, capture_output=True, text=True, check=True
    )
    return done.stdout.split()


@pytest.mark.parametrize(("environment", "limits"), [({}, ["96", "96"]), ({"LRU_CACHE_CAPACITY": "7"}, ["7", "96"])])
def test_the_command_line_limits_what_torch_compiles_unless_the_user_has(
    environment: dict[str, str], limits: list[str]
) -> None:
    assert run_python(LIMITS, environment)[-2:] == limits


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="only Linux tells a process's memory there")
def test_the_command_line_keeps_few_compiled_products_and_lets_the_user_keep_more() -> None:
    unbounded = growth(LRU_CACHE_CAPACITY="1024", ONEDNN_PRIMITIVE_CACHE_CAPACITY="1024")
    if unbounded < 100:
        pytest.skip("torch compiles no products in bfloat16 on this processor")
    assert growth() < unbounded / 2
