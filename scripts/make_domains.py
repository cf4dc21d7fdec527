"""Make two labelled domains from what a machine has anyway, to try the program on text that it was not tuned on.

    python scripts/make_domains.py --out FOLDER
    python scripts/verdict_study.py --data FOLDER --encoder starter --text debian docstrings --objective auto --out FILE

`debian`: the one-line descriptions of Debian's packages, labelled by their section (games, libs, science, ...), from
`apt-cache dumpavail`. `docstrings`: the first paragraphs of docstrings of installed Python packages, labelled by the
package, or by its part where it is large. Both have at most 30 labels with at most 500 sentences each. They differ with
the versions that are installed, and are written to FOLDER/domains/NAME-train.tsv.gz, a label and a sentence a line.
"""

from __future__ import annotations

import argparse
import ast
import gzip
import random
import re
import subprocess
import sysconfig
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path

LABELS, SENTENCES = 30, 500  # at most: labels of a domain, sentences of a label
LARGE = ("scipy", "sympy", "torch")  # labelled by their parts
SMALL = ("accelerate", "datasets", "hypothesis", "matplotlib", "networkx", "numpy", "pandas", "pydantic", "rich")
PACKAGES = (*LARGE, *SMALL, "sklearn", "transformers")
SHORTEST, LONGEST = 20, 300  # characters of a docstring's first paragraph


def descriptions() -> Iterator[tuple[str, str]]:
    """Yield the section and the description of each of Debian's packages."""
    listed = subprocess.run(["apt-cache", "dumpavail"], capture_output=True, text=True, check=True).stdout
    for package in listed.split("\n\n"):
        section = re.search(r"^Section: (?:\S+/)?(\S+)", package, re.MULTILINE)
        description = re.search(r"^Description(?:-en)?: (.+)", package, re.MULTILINE)
        if section and description:
            yield section[1], description[1].strip()


def docstrings() -> Iterator[tuple[str, str]]:
    """Yield the package and the first paragraph of the docstrings of its functions and classes."""
    site = Path(sysconfig.get_path("purelib"))
    for package in PACKAGES:
        for path in sorted((site / package).rglob("*.py")):
            inside = path.relative_to(site).parts
            if "tests" in inside or "models" in inside:  # models of transformers: copies of each other
                continue
            label = ".".join(inside[:2]).removesuffix(".py") if package in LARGE and len(inside) > 2 else package
            try:
                tree = ast.parse(path.read_bytes())
            except SyntaxError:  # an example of a later version of Python
                continue
            for node in ast.walk(tree):
                if isinstance(node, ast.FunctionDef | ast.ClassDef):
                    paragraph = " ".join((ast.get_docstring(node) or "").strip().split("\n\n")[0].split())
                    if SHORTEST < len(paragraph) < LONGEST:
                        yield label, paragraph


def balanced(rows: Iterable[tuple[str, str]]) -> list[tuple[str, str]]:
    """Return different rows in random order: those of the most frequent labels, and not too many of each."""
    different = sorted(set(rows))
    random.Random(0).shuffle(different)
    largest = {label for label, _ in Counter(label for label, _ in different).most_common(LABELS)}
    taken: Counter[str] = Counter()
    found = []
    for label, sentence in different:
        if label in largest and taken[label] < SENTENCES:
            taken[label] += 1
            found.append((label, sentence))
    return found


def main() -> None:
    """Write both domains."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder")
    folder = parser.parse_args().out / "domains"
    folder.mkdir(parents=True, exist_ok=True)
    for name, rows in (("debian", balanced(descriptions())), ("docstrings", balanced(docstrings()))):
        with gzip.open(folder / f"{name}-train.tsv.gz", "wt", encoding="utf-8") as stream:
            stream.writelines(f"{label}\t{sentence}\n" for label, sentence in rows)
        print(f"{name}: {len(rows):,} sentences, {len({label for label, _ in rows})} labels")


if __name__ == "__main__":
    main()
