"""The kernels, and small encoders whose sizes they compute."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from transformers import AutoConfig, AutoModel

from simcse_train.encoders.compiled import stack
from simcse_train.encoders.compiled.build import CannotCompile, compiled_file
from simcse_train.encoders.compiled.library import Library, load
from tests.encoders.families import make_family


@pytest.fixture(scope="session", autouse=True)
def kernels(own_cache: None) -> Iterator[Library]:
    """The kernels of this machine; with KERNEL_FLAGS, compiled with these flags more (`test_sanitizers`)."""
    try:
        loaded = load(compiled_file(os.environ.get("KERNEL_FLAGS", "").split()))
    except CannotCompile as error:
        pytest.skip(f"no kernels here: {error}")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(stack, "library", lambda: loaded)
        yield loaded


def make_larger_family(name: str, folder: Path) -> Path:
    """Save a random two-layer encoder of a family, of sizes that the kernels compute: 64, 96, 32, heads of 16."""
    make_family(name, folder)
    config = AutoConfig.from_pretrained(folder)
    sizes = {"hidden_size": 64, "num_attention_heads": 4, "intermediate_size": 96}
    if name == "distilbert":
        sizes = {"dim": 64, "n_heads": 4, "hidden_dim": 96}
    if name == "electra":
        sizes["embedding_size"] = 32
    config.update(sizes)
    AutoModel.from_config(config).save_pretrained(folder)
    return folder
