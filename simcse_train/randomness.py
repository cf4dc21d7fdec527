"""Random numbers that are a function of a seed.

The dropout noise of a step is a function of (seed, step, part), so a resumed run draws exactly what an undisturbed run
would have drawn, and no generator state has to be saved.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import numpy as np
import torch


@contextlib.contextmanager
def seeded(*seed: int) -> Iterator[None]:
    """Seed torch inside the block from one or more non-negative integers.

    Afterwards the random state of the CPU and of the current CUDA device is that of before the block.
    """
    devices = [torch.cuda.current_device()] if torch.cuda.is_available() else []
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(int(np.random.SeedSequence(seed).generate_state(1, np.uint64)[0] >> np.uint64(1)))
        yield
