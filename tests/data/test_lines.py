from __future__ import annotations

import io
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from simcse_train.data import cache, lines
from simcse_train.data.cache import chunks
from simcse_train.data.lines import Text, read_lines
from simcse_train.data.source import named
from simcse_train.errors import InputError

SOURCE = named(Path("x.txt"))
PIECES = st.sampled_from(
    [b"\n", b"\r", b"\r\n", b"a", "é".encode(), "\ufeff".encode(), b"\0", b"\xff", b"\xe2\x80", b"bc"]
)


@pytest.mark.parametrize("block", [1, 4, 1000])
@settings(max_examples=200, deadline=None)
@given(st.lists(PIECES, max_size=20).map(b"".join))
def test_lines_read_in_bulk_are_those_read_one_by_one(block: int, content: bytes) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(lines, "BLOCK", block)
        text = Text(SOURCE, io.BytesIO(content), "", True, "utf-8", False)
        try:
            expected = [line for _, line in read_lines(io.BytesIO(content), SOURCE)]
        except InputError as error:
            with pytest.raises(InputError) as raised:
                list(text.blocks())
            assert str(raised.value) == str(error)
            return
        assert [line for found in text.blocks() for line in found] == expected


@given(st.lists(st.lists(st.text("a", max_size=7), max_size=6), max_size=6))
def test_chunks_end_at_a_number_of_sentences_or_where_they_are_long(blocks: list[list[str]]) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cache, "CHUNK_SENTENCES", 4)
        patch.setattr(cache, "CHUNK_CHARACTERS", 10)
        found = list(chunks(blocks))
    expected: list[list[str]] = [[]]
    for text in (text for block in blocks for text in block):
        if len(expected[-1]) == 4 or sum(map(len, expected[-1])) > 10:
            expected.append([])
        expected[-1].append(text)
    assert found == [chunk for chunk in expected if chunk]
