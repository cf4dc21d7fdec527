from __future__ import annotations

import os

import pytest

from scripts.fuzz_models import make_folder, run

pytest.importorskip("sentence_transformers")


def test_a_damaged_model_folder_gives_the_right_embeddings_or_one_paragraph() -> None:
    assert run(int(os.environ.get("FUZZ_MODELS", "60")), 0, make_folder) == []
