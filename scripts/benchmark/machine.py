"""A description of the machine and the versions that figures were measured with."""

from __future__ import annotations

import os
import platform
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

ARITHMETIC = ("avx2", "avx512_f", "avx512_vnni", "avx512_bf16", "amx_tile", "amx_bf16", "neon", "sve", "bf16")
PACKAGES = ("torch", "transformers", "sentence-transformers")


def machine(device: str, threads: int) -> dict[str, Any]:
    """Return processor, GPU, cores, threads, instruction sets, system and versions."""
    capabilities = torch.cpu.get_capabilities()
    return {
        "processor": str(capabilities.get("cpu_name") or _processor_name()),
        "card": torch.cuda.get_device_name() if device == "cuda" else None,
        "cores": os.cpu_count(),
        "threads": threads,
        "capabilities": [name for name in ARITHMETIC if capabilities.get(name)],
        "system": f"{platform.system()} {platform.machine()}, Python {platform.python_version()}",
        "versions": {name: version(name) for name in PACKAGES if find_spec(name.replace("-", "_"))},
    }


def machine_line(described: dict[str, Any], precision: str) -> str:
    """Return the description of the machine in one line."""
    versions = ", ".join(f"{name} {number}" for name, number in described["versions"].items())
    card = f"{described['card']}, " if described["card"] else ""
    arithmetic = " ".join(described["capabilities"]) or "no wide arithmetic"
    threads = f"{described['threads']} thread" + "s" * (described["threads"] > 1)
    cores = f"{described['cores']} cores ({arithmetic})"
    return f"{card}{described['processor']}, {cores}, {threads}, {precision}; {versions}"


def _processor_name() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or "unknown processor"
