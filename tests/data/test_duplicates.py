from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from simcse_train.data import duplicates
from simcse_train.data.duplicates import FirstOfEach

HASHES = st.integers(0, 3).map(lambda n: n << 62 | n) | st.integers(0, 2**64 - 1)


@pytest.mark.parametrize("held", [2, 1000])
@settings(max_examples=60, deadline=None)
@given(chunks=st.lists(st.lists(HASHES, max_size=7), max_size=5))
def test_the_first_of_equal_hashes_is_found_in_memory_and_in_files(held: int, chunks: list[list[int]]) -> None:
    with TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        patch.setattr(duplicates, "HELD", held)
        firsts = FirstOfEach(Path(folder) / "hashes")
        for chunk in chunks:
            firsts.add(np.array(chunk, dtype=np.uint64))
        found = firsts.find().tolist()
        whole = [value for chunk in chunks for value in chunk]
        assert found == [value not in whole[:place] for place, value in enumerate(whole)]
        if held == 1000:
            assert not firsts.folder.exists()
