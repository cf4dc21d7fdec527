"""Whether the first record of a table names its columns."""

from __future__ import annotations

import re
import unicodedata
from statistics import fmean

from simcse_train.data.records import is_number

# Names that columns of text, of pairs and of their labels usually have, as `plain_name` spells them.
KNOWN = frozenset(
    """
    text texts sentence sentences sent content contents body message messages comment comments review reviews reviewtext
    title titles headline description summary abstract document doc passage paragraph utterance query queries question
    questions answer answers caption tweet post note notes name subject response prompt instruction input output source
    target context 文本 句子 内容 标题 评论 正文 问题 回答 摘要
    id ids idx index no nr num number uid uuid key guid date time timestamp datetime created createdat author user
    username url link lang language category class label labels score scores rating similarity sim topic tag tags intent
    split genre file year type 标签 类别 分数 相似度 编号 序号 日期
    sentence1 sentence2 text1 text2 texta textb sentencea sentenceb s1 s2 sent0 sent1 sent2 q1 q2 question1 question2
    premise hypothesis anchor positive negative hardnegative hardneg relatedness relatednessscore goldlabel isduplicate
    句子1 句子2 文本1 文本2
    """.split()  # noqa: SIM905 (a list of 100 strings is harder to read)
)
TOKEN = re.compile(r"[^\W\d][\w.\-/:#()\[\]]*")
SENTENCE_END = re.compile(r"[.?!。！？…]\s*[\"'”’»)]*\s*$")  # noqa: RUF001
LONGEST_NAME, LONGEST_NAME_WITHOUT_SPACES = 40, 8


def plain_name(name: str) -> str:
    """Return a name without what differs in spelling: `Sentence_1` and `sentence 1` are `sentence1`."""
    return "".join(character for character in name.casefold() if character.isalnum())


def is_known_name(name: str) -> bool:
    """Say whether columns usually have this name."""
    return len(name) <= LONGEST_NAME and plain_name(name) in KNOWN


def is_list_of_names(fields: list[str]) -> bool:
    """Say whether a line can only be a header: each field looks like a name, and one is a usual one."""
    return all(map(_looks_like_a_name, fields)) and any(map(is_known_name, fields))


def has_header(first: list[str], rest: list[list[str]], given: list[str]) -> bool:
    """Say whether the first record names the columns of the rest.

    It does if it holds a name that the user gave, or a usual one; if it has a word where the others have numbers;
    or if its fields are single words, shorter than everything below them. It does not if a field is a number, is
    empty (but for the first, where a writer leaves out the name of its index), stands twice, or returns below.
    """
    names = [field.strip() for field in first]
    if not names or not any(names):
        return False
    if any(name in names and not is_number(name) for name in given):
        return True
    if any(name.isdecimal() and name not in names for name in given):
        return is_list_of_names(names)  # the user counts the columns
    if any(is_number(name) for name in names):
        return False
    columns = [[row[i].strip() for row in rest if len(row) > i and row[i].strip()] for i in range(len(names))]
    returns = any(name in values for name, values in zip(names, columns, strict=True))
    known = [is_known_name(name) for name in names]
    if all(known) or (any(known) and not returns):
        return True
    if any(name and values and all(map(is_number, values)) for name, values in zip(names, columns, strict=True)):
        return True
    if "" in names[1:] or len(set(names)) < len(names):
        return False
    if returns:
        return False
    return all(map(_looks_like_a_name, names)) and any(
        values and len(name) < min(map(len, values)) and 1.8 * len(name) < fmean(map(len, values))
        for name, values in zip(names, columns, strict=True)
    )


def _looks_like_a_name(field: str) -> bool:
    if SENTENCE_END.search(field) or len(field) > LONGEST_NAME or not TOKEN.fullmatch(field):
        return not field
    # Scripts without spaces: what looks like one word may be a sentence.
    wide = any(
        unicodedata.east_asian_width(character) in "WF" or "\u0e00" <= character <= "\u0eff" for character in field
    )
    return not wide or len(field) <= LONGEST_NAME_WITHOUT_SPACES
