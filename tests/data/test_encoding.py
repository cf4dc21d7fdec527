"""Encodings: told where they are certain, asked for where not, never guessed in silence."""

from __future__ import annotations

import contextlib
import logging
import re
from encodings.aliases import aliases
from io import BytesIO
from pathlib import Path

import pytest

from simcse_train.data.source import named
from simcse_train.data.texts import read_texts
from simcse_train.errors import InputError
from tests.data.reading import read

# ruff: noqa: RUF001 (text as people write it)
CHINESE = ["今天天气很好，我们去公园散步。", "一只猫坐在垫子上。", "他昨天买了一本新书。"]
TAIWANESE = ["今天天氣很好，我們去公園散步。", "一隻貓坐在墊子上。", "他昨天買了一本新書。"]
JAPANESE = ["今日はとても良い天気なので、公園へ散歩に行きます。", "猫がマットの上に座っています。"]
KOREAN = ["오늘은 날씨가 좋아서 공원에 산책하러 갑니다.", "고양이가 매트 위에 앉아 있습니다."]
RUSSIAN = ["Сегодня хорошая погода, мы идём в парк.", "Кошка сидит на ковре и смотрит в окно."]
GERMAN = ["Die Straße führt über die Brücke nach München.", "Grüße aus Köln, wo es heute schön ist."]
QUOTED = ["He said “hello” and left – it’s late.", "The café was closed.", "“Nobody” was there."]


@pytest.mark.parametrize(
    ("lines", "encoding"),
    [
        (CHINESE, "gb18030"), (TAIWANESE, "big5"), (JAPANESE, "shift_jis"), (JAPANESE, "euc_jp"),
        (JAPANESE, "iso2022_jp"), (KOREAN, "euc_kr"), (RUSSIAN, "cp1251"), (RUSSIAN, "koi8_r"), (GERMAN, "cp1252"),
        (GERMAN, "latin-1"), (QUOTED, "cp1252"),
        (GERMAN, "utf-16"), (CHINESE, "utf-16"), (GERMAN, "utf-32"), (["Plain words here."] * 3, "utf-16-le"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("times", [1, 200])
def test_common_encodings_are_told_from_the_text_and_said(
    lines: list[str], encoding: str, times: int, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    content = "".join(line + "\n" for line in lines * times).encode(encoding)
    assert list(read_texts(BytesIO(content), named(Path("x.txt")))) == lines * times
    assert re.search(r"x.txt: lines of text in \S+, for example", caplog.text)


@pytest.mark.parametrize(
    "content",
    [
        "fine\ncafé\n".encode("latin-1"),
        "Žluťoučký\n".encode("cp1250"),
        "Žluťoučký kůň pěl ďábelské ódy\n".encode("iso8859-2"),
    ],
)
def test_an_encoding_that_is_not_certain_is_asked_for_with_what_it_would_read(content: bytes) -> None:
    with pytest.raises(InputError, match=r"line \d is not valid UTF-8 .*not certain: as \S+ it reads '.*--encoding"):
        read("x.txt", content)


@pytest.mark.parametrize("times", [1, 3, 10, 100])
@pytest.mark.parametrize("encoding", ["cp1252", "latin-1"])
def test_a_reading_that_mixes_alphabets_in_words_is_never_taken(encoding: str, times: int) -> None:
    lines = ["La città è molto bella però c'è troppo traffico.", "Perché non vieni più a trovarci?"] * times
    with contextlib.suppress(InputError):  # asked for, where another reading is as probable
        assert read("x.txt", "".join(line + "\n" for line in lines).encode(encoding)) == lines


def test_the_encoding_that_the_user_names_is_used_and_never_ignored() -> None:
    assert read("x.txt", "fine\ncafé\n".encode("latin-1"), encoding="latin-1") == ["fine", "café"]
    assert read("x.csv", "id;text\n1;café\n".encode("cp850"), encoding="cp850") == ["café"]
    assert read("x.json", '[{"t": "café"}]'.encode("cp1252"), encoding="cp1252") == ["café"]
    assert read("x.txt", b"plain\n", encoding="cp1252") == ["plain"]
    with pytest.raises(InputError, match="is valid UTF-8, not --encoding gb18030"):
        read("x.txt", "今天天气\n".encode(), encoding="gb18030")
    with pytest.raises(InputError, match="mark of UTF-16, not of --encoding cp1252"):
        read("x.txt", "a\n".encode("utf-16"), encoding="cp1252")
    with pytest.raises(InputError, match="--encoding klingon is not a known encoding"):
        read("x.txt", b"a\n", encoding="klingon")
    with pytest.raises(InputError, match="x.txt, line 1 is not valid UTF-16"):
        read("x.txt", "fine\n".encode("utf-16-le")[:-1], encoding="utf-16")
    for wide in ("utf-16", "utf-16-le", "utf-32"):  # read so, ASCII of an even length becomes Chinese
        with pytest.raises(InputError, match=f"is valid UTF-8, not --encoding {wide}"):
            read("x.txt", b"A man.\n\n", encoding=wide)
    with pytest.raises(InputError, match="x.txt, line 2 is not valid SHIFT_JIS"):
        read("x.txt", b"fine\ncaf\xe9\n", encoding="shift_jis")


@pytest.mark.parametrize("times", [1, 10_000])
def test_a_file_that_is_cut_inside_a_character_is_refused(times: int) -> None:
    content = (CHINESE[0] + "\n" + CHINESE[1][:4]).encode("gb18030") * times
    lines = times * (CHINESE[0] + "\n").count("\n") + 1
    with pytest.raises(InputError, match=f"x.txt, line {lines} is not valid GB18030"):
        read("x.txt", content[:-1], encoding="gb18030")


@pytest.mark.parametrize("name", ["x.txt", "x.csv", "x.json", "x.jsonl"])
@pytest.mark.parametrize(
    "content", [b"t;u\nplain;words\n", "t;u\ncaf\xe9;b\n".encode("latin-1"), b'[{"t": "caf\xe9"}]']
)
def test_every_encoding_that_python_knows_reads_a_text_or_is_refused(name: str, content: bytes) -> None:
    for encoding in {*aliases.values(), "utf-16", "utf-32", "idna", "punycode", "undefined"}:
        with contextlib.suppress(InputError):
            assert all(isinstance(line, str) for line in read(name, content, encoding=encoding))


@pytest.mark.parametrize("before", [50, 40_000])
def test_a_bad_byte_in_utf8_is_named_with_line_and_byte(before: int) -> None:
    content = "Grüße aus Köln\n".encode() * before + b"caf\xe9\n"
    with pytest.raises(InputError, match=rf"line {before + 1} is not valid UTF-8 .byte 4 of the line, 0xe9"):
        read("x.txt", content)


def test_a_character_at_the_end_of_the_sample_is_not_taken_for_damage() -> None:
    for shift in range(4):
        text = "x" * shift + "猫" * 120_000
        assert read("x.txt", f"{text}\nend\n".encode()) == [text, "end"]


@pytest.mark.parametrize(
    "content", [b"n\tt\n0\t\n1\t\n2\t0\n3\t0\n4\t\xc2\x80\n\0", "Grüße: 1 2 3 4 5\n6 7 8\0\n".encode()]
)
def test_utf8_with_a_nul_is_not_taken_for_wide_characters(content: bytes) -> None:
    with pytest.raises(InputError, match="holds a NUL byte"):
        read("x.tsv", content)


@pytest.mark.parametrize("encoding", ["utf-16-le", "utf-16-be", "utf-32-le", "utf-32-be"])
@pytest.mark.parametrize("lines", [CHINESE, JAPANESE, RUSSIAN, QUOTED])
def test_wide_encodings_are_told_without_a_byte_order_mark(lines: list[str], encoding: str) -> None:
    content = "".join(line + "\n" for line in lines).encode(encoding)
    assert read("x.txt", content) == lines
    assert read("x.txt", content * 9000)[-3:] == (lines * 3)[-3:]


@pytest.mark.parametrize(
    "content",
    [b"fine\nso \0 what\n\n", b"\x7fELF\x02\x01\x01\0", bytes(range(256)) * 40, b"one line\nanother\n\0\0\0\0"],
)
def test_a_nul_byte_is_named_before_anything_else_that_is_wrong(content: bytes) -> None:
    line = content[: content.index(b"\0")].count(b"\n") + 1
    with pytest.raises(InputError, match=f"line {line} holds a NUL byte, as binary files do"):
        read("x.txt", content)


def test_files_beside_the_text_have_its_encoding_only_where_they_are_not_utf8() -> None:
    def read_beside(content: bytes) -> list[str]:
        return list(read_texts(BytesIO(content), named(Path("x.txt"), fallback_encoding="gb18030")))

    few = "好\n"  # too little to tell the encoding from
    for content in (few.encode("gb18030"), few.encode(), few.encode("utf-16"), few.encode("utf-8-sig")):
        assert read_beside(content) == ["好"]
    with pytest.raises(InputError, match="x.txt, line 1 is not valid GB18030"):
        read_beside(b"ab\xff\n")
