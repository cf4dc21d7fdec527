"""Which columns of a table are the two sentences of a pair, their score and a hard negative."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from simcse_train.data.header import plain_name
from simcse_train.data.records import Records, as_number

# Usual names of the two sentences of a pair, in the order in which they are looked for; without marks and capitals.
COUPLES = (
    "sentence1 sentence2", "sentencea sentenceb", "text1 text2", "texta textb", "sent1 sent2", "sent0 sent1", "s1 s2",
    "question1 question2", "q1 q2", "title1 title2", "premise hypothesis", "anchor positive", "query positive",
    "query document", "query passage", "query answer", "question answer", "sentence paraphrase", "text paraphrase",
    "source target", "input output", "first second", "left right", "a b", "title body", "query pos", "句子1 句子2",
    "文本1 文本2",
)  # fmt: skip
NAMES: dict[str, tuple[str, ...]] = {
    "score": (
        "score", "similarityscore", "similarity", "sim", "relatednessscore", "relatedness", "rating", "goldscore",
        "gold", "label", "labels", "goldlabel", "isduplicate", "duplicate", "y", "target", "相似度", "分数", "标签",
    ),
    "negative": ("negative", "hardnegative", "hardneg", "neg", "negative1", "sent2", "sentence3"),
}  # fmt: skip

# Names of columns that count or name the records; the first is that of an index that pandas wrote.
COUNTS = frozenset({
    "", "unnamed0", "id", "ids", "idx", "index", "no", "nr", "num", "number", "uid", "key", "pairid", "sid", "line",
    "row", "year", "编号", "序号",
})  # fmt: skip
REVERSED = frozenset({"distance", "dist", "dissimilarity", "rank", "距离"})  # the greater, the less alike
MANY = 12  # records; fewer may have the scores 1, 2, 3, ...

# How the types of columns that can be scores begin, as the readers name them; a list of words is no score.
NUMBERS = re.compile(r"numbers|true or false|bool|u?int|halffloat|float|double|decimal")


def columns_of(table: Records, roles: Sequence[str], optional: Sequence[str] = ()) -> dict[str, str]:
    """Return the column of each role.

    Raises `InputError` that names the columns there are and those that are looked for.
    """
    found = _by_name(table, [*roles, *optional]) if table.header else _by_position(table, [*roles, *optional])
    missing = [role for role in roles if role not in found]
    if missing:
        if not table.header and len(table.names) < len(roles):
            raise table.source.error(f"has too few fields ({table.shape}); a pair needs {wanted(roles)}.", 1)
        raise table.source.error(
            f"has no columns for a pair that can be told. {table.listed}; {table.shape}. Name them {wanted(roles)}"
            f"{' in the first line' if table.is_delimited else ''}."
        )
    return found


def require_no_count(table: Records, columns: Mapping[str, str], first: Sequence[tuple[int, list[object]]]) -> None:
    """Raise `InputError` if the column of scores, which no usual name says it is, only counts the records."""
    if "score" not in columns or plain_name(columns["score"]) in NAMES["score"] or len(first) < MANY:
        return
    place_of_score = list(columns).index("score")
    numbers = [as_number(str(row[place_of_score])) for _, row in first]
    if all(number is not None and number == (numbers[0] or 0) + place for place, number in enumerate(numbers)):
        raise table.source.error(
            f"has no scores: column {columns['score']!r}, the only one of numbers, counts the records. {table.listed}. "
            "Name the columns of the pairs sentence1, sentence2 and score."
        )


def score_beside(table: Records, columns: Mapping[str, str]) -> str | None:
    """Return the column that grades pairs which are all to be learned, None where there is none.

    A second sentence that is called positive is one, whatever its score.
    """
    if plain_name(columns["second"]) in ("positive", "pos"):
        return None
    others = {plain_name(name): name for name in reversed(table.names) if name not in columns.values()}
    return next((others[name] for name in NAMES["score"] if name in others), None)


def wanted(roles: Sequence[str]) -> str:
    """Return the names of the columns that hold these roles, in words."""
    names = (
        {"first": "sentence1", "second": "sentence2"} if "score" in roles else {"first": "anchor", "second": "positive"}
    )
    listed = [names.get(role, role) for role in roles]
    return f"{', '.join(listed[:-1])} and {listed[-1]}"


def _by_name(table: Records, roles: Sequence[str]) -> dict[str, str]:
    """Return the columns with usual names; where they have others, the only two of text and the only one of numbers."""
    plain = {plain_name(name): name for name in reversed(table.names)}
    found: dict[str, str] = {}
    couples = [couple.split() for couple in COUPLES]
    if "score" not in roles:  # named as anchors and positives rather than as two sentences
        couples.sort(key=lambda couple: couple[1] not in ("positive", "pos"))
    for first, second in couples:
        if first in plain and second in plain:
            found |= {"first": plain[first], "second": plain[second]}
            break
    for role in roles:
        name = next((name for name in NAMES.get(role, ()) if name in plain and plain[name] not in found.values()), None)
        if name is not None:
            found[role] = plain[name]
    texts = [name for name in table.names if table.is_text[name] and name not in found.values()]
    numbers = [name for name in table.names if NUMBERS.match(table.types[name]) and plain_name(name) not in COUNTS]
    if "first" not in found and len(texts) == 2:
        found |= {"first": texts[0], "second": texts[1]}
    if "score" in roles and "score" not in found and len(numbers) == 1:
        if plain_name(numbers[0]) in REVERSED:
            raise table.source.error(
                f"has no scores but column {numbers[0]!r}, which is the greater the less alike two sentences are. Add "
                "a column named score that is the greater the more alike they are, such as the negative of it."
            )
        found["score"] = numbers[0]
    return {role: found[role] for role in roles if role in found}


def _by_position(table: Records, roles: Sequence[str]) -> dict[str, str]:
    """Return the columns of a table without header.

    Known are STS-B, `id||a||b||score`, and two sentences with a score after or before them.
    """
    names = table.names
    is_number_column = [table.types[name] == "numbers" for name in names]
    if "score" not in roles:
        return dict(zip(roles, names, strict=False))
    if len(names) >= 7 and is_number_column[4] and not any(is_number_column[5:7]):
        places = (5, 6, 4)  # STS-B: genre, file, year, number, score, sentence, sentence
    elif len(names) == 3 and is_number_column == [True, False, False]:
        places = (1, 2, 0)
    elif len(names) == 3:
        places = (0, 1, 2)
    elif len(names) > 3 and is_number_column[-1]:
        places = (len(names) - 3, len(names) - 2, len(names) - 1)
    elif len(names) > 3 and is_number_column[2] and not any(is_number_column[:2]):
        places = (0, 1, 2)
    else:
        return {}
    return {role: names[place] for role, place in zip(("first", "second", "score"), places, strict=True)}
