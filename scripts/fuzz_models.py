"""Damage a good model folder in many ways: each must give the right embeddings or one paragraph, never a traceback.

    python scripts/fuzz_models.py --cases 2000

Each case copies a small sentence-transformers folder, changes one or two things in it (a file removed, emptied, cut,
replaced by another file or by noise; a setting of a JSON file removed or changed) and loads it. Right is: `InputError`
in one paragraph, or embeddings that sentence-transformers gives for the same damaged folder, or, where that library
cannot load it, those of the folder before. The script prints each fault with the seed that repeats it and exits with 1
if there was one.
"""

from __future__ import annotations

import argparse
import json
import logging
import random
import shutil
import sys
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from simcse_train.encoders.loading import load_encoder
from simcse_train.errors import InputError

FAMILIES = ("bert", "roberta", "xlm-roberta")  # WordPiece, byte-level BPE, a unigram model
SENTENCES = ["a man plays the guitar.", "the big red Dog runs in the park on the blue hill!", "cat"]
VALUES: tuple[Any, ...] = (
    None, 0, 1, -1, 3, 7, 512, 10**6, 10**12, 0.5, -0.5, 1e30, "", "x", "bert", "gelu", "relu",
    True, False, [], [1, 2], {}, {"a": 1},
)  # fmt: skip


def mutate(folder: Path, other: Path, rng: random.Random) -> str:
    """Damage one thing in a folder and return what was done; `other` is a good folder of another family."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    path = rng.choice(files)
    name = str(path.relative_to(folder))
    jsons = [file for file in files if file.suffix == ".json" and file.stat().st_size < 10**5]
    kind = rng.choice(["remove", "empty", "cut", "flip", "swap", "noise", *["setting"] * 10])
    if kind == "remove":
        path.unlink()
    elif kind == "empty":
        path.write_bytes(b"")
    elif kind == "cut":
        content = path.read_bytes()
        path.write_bytes(content[: rng.randrange(len(content))] if content else b"")
    elif kind == "flip":
        flipped = bytearray(path.read_bytes())
        if flipped:
            flipped[rng.randrange(len(flipped))] ^= 1 << rng.randrange(8)
        path.write_bytes(bytes(flipped))
    elif kind == "swap":
        source = rng.choice(sorted(file for file in other.rglob("*") if file.is_file()))
        name += f" by {source.name} of another family" if rng.random() < 0.3 else " by that of another family"
        same = other / path.relative_to(folder)
        shutil.copy(same if same.is_file() and "that" in name else source, path)
    elif kind == "noise":
        path.write_bytes(rng.randbytes(rng.randrange(1, 200)))
    else:
        return _change_setting(rng.choice(jsons), rng)
    return f"{kind} {name}"


def _change_setting(path: Path, rng: random.Random) -> str:
    """Remove or replace one value somewhere in a JSON file; return what was done."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError:  # damaged by an earlier change
        return f"nothing in {path.name}"
    places: list[tuple[Any, Any]] = []

    def collect(node: Any, depth: int) -> None:
        for key in list(node) if isinstance(node, dict) else range(len(node)):
            places.append((node, key))
            if isinstance(node[key], dict | list) and depth < 3 and len(node[key]) < 50:
                collect(node[key], depth + 1)

    if isinstance(content, dict | list):
        collect(content, 0)
    if not places:
        return f"nothing in {path.name}"
    node, key = rng.choice(places)
    if rng.random() < 0.25:
        del node[key]
        done = f"without {key!r}"
    else:
        node[key] = rng.choice(VALUES)
        done = f"{key!r} = {node[key]!r}"
    path.write_text(json.dumps(content), encoding="utf-8")
    return f"{path.parent.name}/{path.name}: {done}"


def peer(folder: Path) -> NDArray[np.float32] | None:
    """Return what sentence-transformers gives for a folder, or None where it cannot load it."""
    from sentence_transformers import SentenceTransformer

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return SentenceTransformer(str(folder), device="cpu").encode(
                SENTENCES, normalize_embeddings=True, batch_size=1
            )
    except BaseException as error:  # whatever it raises, a panic of the tokenizers library included
        if isinstance(error, KeyboardInterrupt):
            raise
        return None


def judge(folder: Path, before: NDArray[np.float32]) -> str:
    """Return what is wrong with how a damaged folder is treated, or nothing."""
    try:
        found = load_encoder(folder).encode(SENTENCES)
    except InputError as error:
        return "its message has more than one line" if "\n" in str(error) else ""
    except BaseException as error:
        if isinstance(error, KeyboardInterrupt):
            raise
        return f"{type(error).__name__}: {str(error)[:200]}"
    if found.shape == before.shape and np.allclose(found, before, atol=1e-4):
        return ""
    expected = peer(folder)
    if expected is None:
        return "other embeddings than before, and sentence-transformers can't load the folder"
    if found.shape != expected.shape or not np.allclose(found, expected, atol=1e-3):
        return "other embeddings than sentence-transformers gives for the folder"
    return ""


def run(cases: int, seed: int, make: Callable[[str, Path], Path]) -> list[str]:
    """Try `cases` damaged folders and return the faults; `make` saves a good folder of a family."""
    faults = []
    with tempfile.TemporaryDirectory() as work:
        good = {family: make(family, Path(work) / family) for family in FAMILIES}
        before = {family: load_encoder(folder).encode(SENTENCES) for family, folder in good.items()}
        for case in range(seed, seed + cases):
            rng = random.Random(case)
            family = rng.choice(sorted(good))
            folder = Path(work) / "case"
            shutil.copytree(good[family], folder)
            other = good[FAMILIES[FAMILIES.index(family) - 1]]
            done = [mutate(folder, other, rng) for _ in range(rng.choice([1, 1, 2]))]
            if fault := judge(folder, before[family]):
                faults.append(f"case {case} ({family}; {'; '.join(done)}): {fault}")
            shutil.rmtree(folder)
    return faults


def make_folder(family: str, folder: Path) -> Path:
    """Save a small encoder of a family with a Dense and a Normalize module and a prompt."""
    from sentence_transformers import SentenceTransformer, models  # type: ignore[attr-defined]

    from tests.encoders.families import make_family

    folder.with_name(f"{family}-plain").mkdir(parents=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.manual_seed(2)
        transformer = models.Transformer(
            str(make_family(family, folder.with_name(f"{family}-plain"))), max_seq_length=40
        )
        chain = [transformer, models.Pooling(32), models.Dense(32, 16), models.Normalize()]
        SentenceTransformer(modules=chain, device="cpu", prompts={"query": "the: "}, default_prompt_name="query").save(
            str(folder)
        )
    return folder


def main() -> None:
    """Run the cases that the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0, help="number of the first case")
    arguments = parser.parse_args()
    logging.disable(logging.ERROR)
    warnings.simplefilter("ignore")
    faults = run(arguments.cases, arguments.seed, make_folder)
    print("\n".join(faults))
    print(f"{arguments.cases} damaged folders, {len(faults)} faults")
    sys.exit(bool(faults))


if __name__ == "__main__":
    main()
