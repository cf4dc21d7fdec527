"""Transfer tasks: what a logistic regression on frozen embeddings learns (SentEval, Conneau & Kiela 2018).

The tasks and the protocol of Gao, Yao & Chen 2021, appendix E: MR, CR, SUBJ and MPQA by ten-fold cross-validation, the
strength of the regularisation chosen by another ten folds inside each; SST2 by its own split; TREC and MRPC by ten
folds of the training part, then the test part. This is SentEval's scikit-learn form (`usepytorch=False`) with its
folds, seed, strengths and order of examples; its other form fits the same regression by Adam with early stopping.
Embeddings are not normalised, as there.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tqdm.auto import tqdm

from simcse_train.encoders.encoder import Encoder
from simcse_train.errors import InputError
from simcse_train.search.embeddings import encode_together, require_finite

SEED = 1111  # SentEval's
FOLDS = 10
FEWEST = FOLDS + 2  # examples of a class: in each fold, what remains is divided into as many folds again
STRENGTHS = [2.0**power for power in range(-2, 4)]
STRENGTHS_WITH_TEST = [2.0**power for power in range(-1, 6)]  # where a task has a training and a test part alone

# The two classes of each task that has one file a class.
CLASS_FILES = {
    "MR": ("rt-polarity.pos", "rt-polarity.neg"),
    "CR": ("custrev.pos", "custrev.neg"),
    "SUBJ": ("subj.objective", "subj.subjective"),
    "MPQA": ("mpqa.pos", "mpqa.neg"),
}
OTHER_FILES = {
    "SST2": ("SST/binary/sentiment-train", "SST/binary/sentiment-dev", "SST/binary/sentiment-test"),
    "TREC": ("TREC/train_5500.label", "TREC/TREC_10.label"),
    "MRPC": ("MRPC/msr_paraphrase_train.txt", "MRPC/msr_paraphrase_test.txt"),
}
FILES = {task: tuple(f"{task}/{name}" for name in names) for task, names in CLASS_FILES.items()} | OTHER_FILES

Part = tuple[NDArray[np.float32], NDArray[np.str_]]  # features (examples, n) and a class each (examples,)


@dataclass(frozen=True)
class Result:
    """A task's accuracy x 100 (None where its files are missing), the number of its examples, and what is missing."""

    task: str
    accuracy: float | None
    examples: int
    missing: tuple[str, ...] = ()


def evaluate_transfer(encoder: Encoder, data: Path, *, show_progress: bool = False) -> list[Result]:
    """Score an encoder on the transfer tasks in a folder laid out as SentEval's `data/downstream`.

    Raises `InputError` if there is no task, or a file cannot be read.
    """
    present = {task: [name for name in names if not (data / name).is_file()] for task, names in FILES.items()}
    if all(present.values()):
        raise InputError(
            f"--data {data} holds none of the transfer tasks. Give SentEval's data/downstream, with "
            f"{', '.join(names[0] for names in FILES.values())}."
        )
    results = []
    for task, missing in tqdm(present.items(), desc="transfer", unit="task", disable=not show_progress):
        if missing:
            results.append(Result(task, None, 0, tuple(missing)))
            continue
        parts = [[(s, c) for s, c in _read(task, data / name, i)] for i, name in enumerate(FILES[task])]
        for name, part in zip(FILES[task], parts, strict=True):
            classes = Counter(label for _, label in part).most_common(1 if task in CLASS_FILES else 2)
            fewest = FEWEST if name == FILES[task][0] or task in CLASS_FILES else 1  # else only to choose and to test
            if len(classes) < (1 if task in CLASS_FILES else 2) or classes[-1][1] < fewest or len(part) < FOLDS:
                raise InputError(
                    f"{data / name} holds {len(part)} examples; {task} needs {max(FOLDS, fewest)} of each of two "
                    "classes to learn from, and as many in all to test."
                )
        if task in CLASS_FILES:
            parts = [[example for part in parts for example in part]]
        parts = [sorted(part, key=_place) for part in parts]
        accuracy = score_task([_embed(encoder, part) for part in parts])
        results.append(Result(task, accuracy, sum(map(len, parts))))
    if all(result.accuracy is not None for result in results):
        mean = float(np.mean([result.accuracy for result in results if result.accuracy is not None]))
        results.append(Result("average", mean, sum(result.examples for result in results)))
    return results


def score_task(parts: Sequence[Part]) -> float:
    """Return the accuracy x 100 of a task with one, two (training, test) or three parts (the second: development)."""
    from sklearn.model_selection import GridSearchCV, PredefinedSplit, StratifiedKFold, cross_val_score

    folds = StratifiedKFold(FOLDS, shuffle=True, random_state=SEED)

    def search(strengths: list[float], split: Any, *, refit: bool = True) -> Any:
        return GridSearchCV(_regression(), {"C": strengths}, cv=split, refit=refit)

    if len(parts) == 1:
        features, classes = parts[0]
        return 100 * float(cross_val_score(search(STRENGTHS, folds), features, classes, cv=folds).mean())
    training, test = parts[0], parts[-1]
    if len(parts) == 2:
        return 100 * float(search(STRENGTHS_WITH_TEST, folds).fit(*training).score(*test))
    development = parts[1]
    both = (np.concatenate([training[0], development[0]]), np.concatenate([training[1], development[1]]))
    is_development = PredefinedSplit(np.repeat([-1, 0], [len(training[1]), len(development[1])]))
    best = search(STRENGTHS, is_development, refit=False).fit(*both).best_params_["C"]
    return 100 * float(_regression(C=best).fit(*training).score(*test))


def _regression(**settings: float) -> Any:
    from sklearn.linear_model import LogisticRegression

    return LogisticRegression(random_state=SEED, max_iter=1000, **settings)


def _place(example: tuple[tuple[str, ...], str]) -> tuple[object, ...]:
    """Return by what SentEval sorts examples, on which their folds depend: numbers of words, then the class."""
    texts, label = example
    return *(len(text.split()) for text in texts), label


def _embed(encoder: Encoder, examples: Sequence[tuple[tuple[str, ...], str]]) -> Part:
    """Return the features of examples: the embedding u of a sentence, or [|u - v|, u * v] of a pair (SentEval)."""
    sides = []
    for side in range(len(examples[0][0])):
        sentences = [texts[side] for texts, _ in examples]
        sides.append(encode_together(encoder, sentences, normalized=False))
        require_finite(sides[-1], sentences.__getitem__)
    features = sides[0] if len(sides) == 1 else np.hstack([np.abs(sides[0] - sides[1]), sides[0] * sides[1]])
    return features, np.array([label for _, label in examples])


def _read(task: str, path: Path, number: int) -> list[tuple[tuple[str, ...], str]]:
    """Return the texts and class of each line of a task's file; `number` is that of the file among the task's own."""
    read: Callable[[str], tuple[tuple[str, ...], str]] = {"SST2": _sst, "TREC": _trec, "MRPC": _mrpc}.get(
        task, lambda line: ((line,), str(1 - number))
    )
    # SentEval reads these two as UTF-8 and the others, some of which are not, as Latin-1.
    encoding = "utf-8" if task in ("SST2", "MRPC") else "latin-1"
    try:
        lines = path.read_text(encoding=encoding).split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path} can't be read ({error}). Download SentEval's data again.") from None
    examples = []
    for i, line in enumerate(lines[task == "MRPC" :], start=1 + (task == "MRPC")):
        if not line.strip():
            continue
        try:
            texts, label = read(line.strip())
        except (ValueError, IndexError):
            raise InputError(
                f"{path}, line {i} is not in SentEval's form of {task}. Download the file again."
            ) from None
        examples.append((tuple(" ".join(text.split()) for text in texts), label))
    return examples


def _sst(line: str) -> tuple[tuple[str, ...], str]:
    text, label = line.split("\t")
    return (text,), label


def _trec(line: str) -> tuple[tuple[str, ...], str]:
    label, rest = line.split(":", 1)
    return (rest.split(" ", 1)[1],), label


def _mrpc(line: str) -> tuple[tuple[str, ...], str]:
    label, _, _, first, second = line.split("\t")[:5]
    return (first, second), label


def table(results: Sequence[Result]) -> str:
    """Return the results as a plain-text table."""
    lines = [f"{'task':<10}{'accuracy x 100':>15}{'examples':>10}"]
    for result in results:
        accuracy = "missing" if result.accuracy is None else f"{result.accuracy:.2f}"
        gaps = f"  without {', '.join(result.missing)}" if result.missing else ""
        lines.append(f"{result.task:<10}{accuracy:>15}{result.examples:>10}{gaps}")
    if any(result.missing for result in results):
        lines.append("No average: it is defined over all seven tasks.")
    return "\n".join(lines)


def as_json(results: Sequence[Result]) -> str:
    """Return the results as one JSON object, by task."""
    return json.dumps({result.task: {k: v for k, v in asdict(result).items() if k != "task"} for result in results})
