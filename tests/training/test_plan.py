from __future__ import annotations

from pathlib import Path

import pytest

from simcse_train.config import make_config, option
from simcse_train.errors import InputError
from simcse_train.training.plan import changed
from simcse_train.training.start import train
from tests.training.test_loop import settings


def test_sentences_may_use_every_position_of_the_encoder_and_no_more(text: Path, tiny: Path, tmp_path: Path) -> None:
    train(settings(text, tiny, tmp_path / "run", max_length=64, max_steps=1))
    with pytest.raises(InputError, match="--max-length 65 is beyond the 64 positions"):
        train(settings(text, tiny, tmp_path / "longer", max_length=65, max_steps=1))


@pytest.mark.parametrize("name", ["max_steps", "epochs"])
def test_a_resumed_run_may_be_lengthened_and_not_shortened(name: str) -> None:
    config = make_config({"data": "x.txt", name: 10})
    assert getattr(changed(config, {name: 11}), name) == 11
    assert getattr(changed(config, {name: 10}), name) == 10
    with pytest.raises(InputError, match=f"{option(name)} can only be raised when a run is resumed; it was 10"):
        changed(config, {name: 9})
