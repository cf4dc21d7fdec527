from __future__ import annotations

import gzip
import json
import tracemalloc
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from simcse_train.encoders.loading import load_encoder
from simcse_train.errors import InputError
from simcse_train.evaluation.labels import (
    as_json,
    evaluate_labels,
    read_labelled,
    score_labels,
    score_neighbours,
    table,
)


def test_the_measures_are_their_definitions() -> None:
    # Two tight groups of 12 on a circle, and one sentence labelled like the other group.
    angles = np.concatenate([np.linspace(0, 1, 12) ** 2, 3 + np.linspace(0, 0.3, 12) ** 2])
    embeddings = np.stack([np.cos(angles), np.sin(angles)], axis=1).astype(np.float32)
    labels = ["a"] * 12 + ["b"] * 12
    scores = score_labels(embeddings, labels)
    assert (scores.sentences, scores.labels) == (24, 2)
    assert scores.nearest == scores.precision == 100
    assert scores.nmi == pytest.approx(100)
    labels[0] = "b"  # the ten nearest of it are ten of its eleven companions, all with another label
    changed = score_labels(embeddings, labels)
    # Each of its companions has ten of eleven others; the tenth-nearest cut decides how often it is among them.
    distances = np.abs(angles[:12, None] - angles[None, :12]) + np.eye(12) * 9
    neighbours = np.argsort(distances, axis=1)[:, :10]
    missed = (neighbours[1:] == 0).sum() + 10
    assert changed.precision == pytest.approx(100 * (1 - missed / 240))
    assert changed.nearest == pytest.approx(100 * (1 - (1 + (neighbours[1:, 0] == 0).sum()) / 24))


@pytest.mark.parametrize(
    ("name", "content", "label", "text"),
    [
        ("x.tsv", "x\ta man\ny\ta cat\n\nx\tthe man\ny\t\n", "1", None),
        ("x.tsv", "q\tx\ta man\nq\ty\ta cat\nq\tx\tthe man\n", "2", "3"),
        ("x.csv", "label,text\nx,a man\ny,a cat\nx,the man\n", "label", "text"),
        ("x.jsonl", '{"l": "x", "t": "a man"}\n{"l": "y", "t": "a cat"}\n{"l": "x", "t": "the man"}\n', "l", "t"),
    ],
)
def test_labelled_tables_are_read_in_every_format(
    tmp_path: Path, name: str, content: str, label: str, text: str | None
) -> None:
    (tmp_path / name).write_text(content)
    assert read_labelled(tmp_path / name, label, text) == (["a man", "a cat", "the man"], ["x", "y", "x"])
    with gzip.open(tmp_path / f"{name}.gz", "wt") as stream:
        stream.write(content)
    assert read_labelled(tmp_path / f"{name}.gz", label, text)[1] == ["x", "y", "x"]


def test_a_missing_label_is_no_label(tmp_path: Path) -> None:
    labels = pa.array([1.0, None, float("nan"), 1.0, 2.0])
    pq.write_table(pa.table({"t": ["a", "b", "c", "d", "e"], "l": labels}), tmp_path / "x.parquet")
    assert read_labelled(tmp_path / "x.parquet", "l", None) == (["a", "d", "e"], ["1.0", "1.0", "2.0"])


def test_the_column_of_labels_may_be_counted_where_the_first_line_has_names(tmp_path: Path) -> None:
    (tmp_path / "x.csv").write_text("label,text\nx,a man\ny,a cat\nx,the man\n")
    assert read_labelled(tmp_path / "x.csv", "1", "2") == (["a man", "a cat", "the man"], ["x", "y", "x"])


@pytest.mark.parametrize(
    ("content", "label", "message"),
    [
        ("x\ta\nx\tb\n", "1", "1 different labels"),
        ("x\ta\ny\tb\n", "1", "2 different labels"),
        ("x\ta\ny\tb\n", "3", "no column '3'.*columns are counted: '1', '2'"),
        ("x\ta\ny\n", "1", "line 2 has 1 field where"),
        ("label\ttext\nx\ta\n", "topic", "no column 'topic'"),
    ],
)
def test_labels_that_say_nothing_are_refused(tmp_path: Path, content: str, label: str, message: str) -> None:
    (tmp_path / "x.tsv").write_text(content)
    with pytest.raises(InputError, match=message):
        read_labelled(tmp_path / "x.tsv", label, None)


def test_an_encoder_is_scored_on_labels(tiny: Path, tmp_path: Path) -> None:
    words = ["a man runs", "the man runs", "a man sings", "a cat plays", "the cat plays", "a cat sings"]
    (tmp_path / "x.tsv").write_text("".join(f"{'m' if 'man' in w else 'c'}\t{w}\n" for w in words))
    scores = evaluate_labels(load_encoder(tiny), tmp_path / "x.tsv", "1", None)
    assert scores.sentences == 6
    assert json.loads(as_json(scores))["precision"] == pytest.approx(scores.precision)
    assert "precision@10" in table(scores, "x.tsv")


def test_clusters_beyond_the_limit_are_left_out_and_the_table_says_so() -> None:
    count = 6000
    embeddings = np.random.default_rng(0).normal(size=(count, 2)).astype(np.float32)
    embeddings /= np.linalg.norm(embeddings, axis=1, keepdims=True)
    many = score_labels(embeddings, [str(i // 2) for i in range(count)])  # 3,000 labels: minutes of k-means
    assert many.nmi is None
    assert "NMI of k-means" in table(many, "x.tsv") and "left out" in table(many, "x.tsv")
    assert json.loads(as_json(many))["nmi"] is None
    assert score_labels(embeddings, [str(i % 2) for i in range(count)]).nmi is not None


def test_one_long_label_takes_its_memory_once() -> None:
    rows = np.eye(64, dtype=np.float32)[np.arange(2000) % 64]
    labels = [f"label {number % 64}" for number in range(1999)] + ["x" * 20_000]
    tracemalloc.start()
    score_neighbours(rows, labels)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 20 * 2**20
