from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedKFold

from simcse_train.encoders.loading import load_encoder
from simcse_train.errors import InputError
from simcse_train.evaluation import transfer
from simcse_train.evaluation.transfer import FILES, SEED, Part, _embed, as_json, evaluate_transfer, score_task, table
from tests.conftest import WORDS

MAN = [
    f"the man {verb} in the {place}"
    for verb in ("sings", "runs", "plays")
    for place in ("park", "hill", "red park", "big hill")
]
CAT = [text.replace("the man", "a small cat") for text in MAN]


def senteval(folder: Path) -> Path:
    """Write small files in the form of each of the seven tasks; the class is whether a man or a cat does it."""
    for name in (name for names in FILES.values() for name in names):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
    for task in ("MR", "CR", "SUBJ", "MPQA"):
        for name, texts in zip(FILES[task], (MAN, CAT), strict=True):
            (folder / name).write_bytes("\n".join(texts).encode("latin-1") + b" caf\xe9\n")
    for name in FILES["SST2"]:
        (folder / name).write_text("".join(f"{m}\t0\n{c}\t1\n" for m, c in zip(MAN, CAT, strict=True)))
    for name in FILES["TREC"]:
        (folder / name).write_text("".join(f"HUM:ind {m}\nENTY:animal {c}\n" for m, c in zip(MAN, CAT, strict=True)))
    for name in FILES["MRPC"]:
        lines = [f"1\t1\t2\t{m}\t{m}\n0\t1\t2\t{m}\t{c}\n" for m, c in zip(MAN, CAT, strict=True)]
        (folder / name).write_text("Quality\t#1 ID\t#2 ID\t#1 String\t#2 String\n" + "".join(lines))
    return folder


def test_tasks_that_are_easy_are_learned_and_averaged(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(transfer, "STRENGTHS", [1.0])  # four tasks times ten times ten folds times each of them
    results = evaluate_transfer(load_encoder(tiny), senteval(tmp_path))
    assert [result.task for result in results] == [*FILES, "average"]
    assert all(result.accuracy is not None and result.accuracy > 90 for result in results)
    assert {result.task: result.examples for result in results}["MRPC"] == 48
    assert json.loads(as_json(results))["average"]["accuracy"] == pytest.approx(
        np.mean([result.accuracy for result in results[:-1]])
    )


def test_a_missing_task_is_named_and_never_averaged_away(tiny: Path, tmp_path: Path) -> None:
    senteval(tmp_path)
    for name in [name for task in FILES if task != "TREC" for name in FILES[task]]:
        (tmp_path / name).unlink()
    results = evaluate_transfer(load_encoder(tiny), tmp_path)
    assert {result.task for result in results if result.accuracy is not None} == {"TREC"}
    assert "without MR/rt-polarity.pos" in table(results)
    assert "No average" in table(results)
    for name in FILES["TREC"]:
        (tmp_path / name).unlink()
    with pytest.raises(InputError, match="none of the transfer tasks"):
        evaluate_transfer(load_encoder(tiny), tmp_path)


def test_a_line_in_another_form_is_refused_with_its_number(tiny: Path, tmp_path: Path) -> None:
    senteval(tmp_path)
    for task in ("MR", "CR", "SUBJ", "MPQA"):
        for name in FILES[task]:
            (tmp_path / name).unlink()
    (tmp_path / FILES["SST2"][1]).write_text("fine\t1\nno label\n")
    with pytest.raises(InputError, match="sentiment-dev, line 2"):
        evaluate_transfer(load_encoder(tiny), tmp_path)


@pytest.mark.parametrize(("task", "enough"), [("CR", 12), ("TREC", 12)])
def test_too_few_examples_for_the_folds_are_refused_and_enough_are_not(
    task: str, enough: int, tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(transfer, "STRENGTHS", [1.0])
    senteval(tmp_path)
    for name in [name for other in FILES if other != task for name in FILES[other]]:
        (tmp_path / name).unlink()
    lines = (tmp_path / FILES[task][0]).read_bytes().splitlines(keepends=True)
    kept = enough if task == "CR" else 2 * enough  # the classes of TREC alternate in one file
    (tmp_path / FILES[task][0]).write_bytes(b"".join(lines[:kept]))
    accuracy = {result.task: result.accuracy for result in evaluate_transfer(load_encoder(tiny), tmp_path)}[task]
    assert accuracy is not None
    assert accuracy > 80
    (tmp_path / FILES[task][0]).write_bytes(b"".join(lines[: kept - 1]))
    with pytest.raises(InputError, match=f"{task} needs 12 of each of two classes"):
        evaluate_transfer(load_encoder(tiny), tmp_path)


def test_a_coin_is_not_learned() -> None:
    generator = np.random.default_rng(0)
    features = generator.normal(size=(200, 5)).astype(np.float32)
    classes = generator.choice(["a", "b"], size=200)
    assert 30 < score_task([(features[:60], classes[:60])]) < 70
    assert 30 < score_task([(features[:100], classes[:100]), (features[100:], classes[100:])]) < 70


def noisy(examples: int, seed: int, *, shuffled: bool = False) -> Part:
    """Features that tell two classes in part; `shuffled` ones tell nothing."""
    generator = np.random.default_rng(seed)
    features = generator.normal(size=(examples, 12)).astype(np.float32)
    classes = np.where(features[:, 0] + 1.5 * generator.normal(size=examples) > 0, "a", "b")
    return features, generator.permutation(classes) if shuffled else classes


def fitted(strength: float, part: Part) -> LogisticRegression:
    return LogisticRegression(C=strength, random_state=SEED, max_iter=1000).fit(*part)


def best_of_ten_folds(strengths: list[float], features: np.ndarray, classes: np.ndarray) -> float:
    def accuracy(strength: float) -> float:
        folds = StratifiedKFold(10, shuffle=True, random_state=SEED).split(features, classes)
        scores = [fitted(strength, (features[a], classes[a])).score(features[b], classes[b]) for a, b in folds]
        return float(np.mean(scores))

    return max(strengths, key=accuracy)


def test_a_test_part_is_scored_by_the_strength_that_ten_folds_of_the_training_part_choose() -> None:
    training, test = noisy(80, 0), noisy(60, 1, shuffled=True)
    best = best_of_ten_folds([0.5, 1, 2, 4, 8, 16, 32], *training)
    expected = fitted(best, training).score(*test)
    assert score_task([training, test]) == pytest.approx(100 * expected)
    assert abs(expected - fitted(best, training).score(*training)) > 0.1


def test_with_a_development_part_the_strength_is_that_which_scores_best_on_it() -> None:
    training, development, test = noisy(40, 0), noisy(60, 1), noisy(400, 2)
    best = max([0.25, 0.5, 1, 2, 4, 8], key=lambda strength: fitted(strength, training).score(*development))
    expected = fitted(best, training).score(*test)
    assert score_task([training, development, test]) == pytest.approx(100 * expected)
    assert expected != fitted(1, training).score(*test)


def test_a_pair_is_described_by_difference_and_product_of_embeddings_that_are_not_normalised(tiny: Path) -> None:
    encoder = load_encoder(tiny)
    features, classes = _embed(encoder, [(("a man", "the cat runs"), "1"), (("red hill", "a dog"), "0")])
    u = encoder.encode(["a man", "red hill"], normalized=False)
    v = encoder.encode(["the cat runs", "a dog"], normalized=False)
    assert np.linalg.norm(u, axis=1).min() > 2
    assert np.allclose(features, np.concatenate([abs(u - v), u * v], axis=1), atol=1e-5)
    assert classes.tolist() == ["1", "0"]


def test_the_folds_are_those_of_examples_by_their_number_of_words_and_then_the_class(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(transfer, "STRENGTHS", [1.0])
    generator = np.random.default_rng(0)
    words = [word for word in WORDS.split() if word.isalpha()]
    examples = []
    for name, label in zip(FILES["MR"], "10", strict=True):
        texts = [" ".join(generator.choice(words, size=size)) for size in generator.integers(2, 6, size=30)]
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("\n".join(texts))
        examples += [(text, label) for text in texts]
    encoder = load_encoder(tiny)

    def accuracy(ordered: list[tuple[str, str]]) -> float:
        features = encoder.encode([text for text, _ in ordered], normalized=False)
        return score_task([(features, np.array([label for _, label in ordered]))])

    expected = accuracy(sorted(examples, key=lambda example: (len(example[0].split()), example[1])))
    assert evaluate_transfer(encoder, tmp_path)[0].accuracy == pytest.approx(expected)
    assert expected != pytest.approx(accuracy(examples))
