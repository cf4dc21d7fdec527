"""A random sample of the sentences of a text, without tokenising it."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Sequence
from dataclasses import dataclass

from simcse_train.data.files import find_files, open_file, say_left_out
from simcse_train.data.source import named
from simcse_train.data.texts import read_texts


@dataclass(frozen=True)
class LineCounts:
    """Lines of the whole text."""

    lines: int
    empty: int
    duplicates: int


def sample_text(
    data: Sequence[str], text_column: str | None, size: int, encoding: str | None = None
) -> tuple[LineCounts, list[str]]:
    """Return the counts of a text and a random sample of its distinct sentences, in random order.

    Memory grows by eight bytes and an entry of a set for each distinct line. Raises `InputError` if a file cannot be
    read.
    """
    generator = random.Random(0)
    seen: set[int] = set()
    sample: list[str] = []
    lines = empty = duplicates = 0
    files = find_files(data)
    say_left_out(data)
    for path in files:
        with open_file(path) as raw:
            for line in read_texts(raw, named(path, text_column=text_column, encoding=encoding)):
                lines += 1
                sentence = line.strip()
                if not sentence:
                    empty += 1
                    continue
                digest = int.from_bytes(hashlib.blake2b(sentence.encode(), digest_size=8).digest(), "little")
                if digest in seen:
                    duplicates += 1
                    continue
                seen.add(digest)
                if len(sample) < size:  # reservoir sampling (Vitter 1985, algorithm R)
                    sample.append(sentence)
                elif (place := generator.randrange(len(seen))) < size:
                    sample[place] = sentence
    generator.shuffle(sample)
    return LineCounts(lines, empty, duplicates), sample
