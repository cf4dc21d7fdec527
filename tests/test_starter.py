from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from simcse_train.config import make_config
from simcse_train.data.pairs import read_pairs
from simcse_train.encoders.loading import STARTER_FOLDER, load_encoder
from simcse_train.evaluation.sts import evaluate, similarity_score
from simcse_train.training.start import train
from tests.conftest import EXAMPLES


def test_the_starter_is_small_and_brings_its_pooling() -> None:
    assert sum(p.stat().st_size for p in STARTER_FOLDER.rglob("*") if p.is_file()) < 16 * 2**20
    encoder = load_encoder("starter")
    assert (encoder.pooling, encoder.hidden_size, encoder.packed) == ("mean", 256, True)


def test_the_starter_knows_which_sentences_are_alike(shared: Path) -> None:
    assert (evaluate(load_encoder("starter"), shared / "sts" / "STSBenchmark" / "sts-test.csv")[0].score or 0) > 75.9


def test_the_examples_are_what_their_readme_says() -> None:
    sentences = (EXAMPLES / "sentences.txt").read_text(encoding="utf-8").splitlines()
    pairs = read_pairs(EXAMPLES / "pairs.tsv")
    assert len(sentences) == len(set(sentences)) == 2724
    assert all(4 <= len(sentence.split()) <= 40 for sentence in sentences)
    assert len(pairs) == 483
    assert all(0 <= pair.score <= 5 for pair in pairs)
    assert not {sentence for pair in pairs for sentence in pair[:2]} & set(sentences)


def test_the_quickstart_needs_no_network(tmp_path: Path) -> None:
    output = str(tmp_path / "run")
    code = f"""
import socket, sys
def forbidden(*_, **__): raise AssertionError("a socket was opened")
socket.socket.connect = socket.create_connection = socket.getaddrinfo = forbidden
sys.argv = ["simcse-train", "--config", "configs/quickstart.yaml", "--max-steps", "3", "--output", {output!r}]
from simcse_train.cli import main
main()
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=EXAMPLES.parent, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "Encoder: the bundled starter" in done.stderr
    assert "before training" in done.stderr
    assert "after training" in done.stderr
    assert (tmp_path / "run" / "encoder" / "model.safetensors").is_file()


@pytest.mark.slow
@pytest.mark.parametrize("seed", [1, 2, 3])
def test_minilm_gets_better_in_sixty_steps(seed: int, minilm: Path, shared: Path, tmp_path: Path) -> None:
    pairs = read_pairs(shared / "sts" / "STSBenchmark" / "sts-test.csv")
    text = shared / "corpora" / "wikipedia-en.txt.xz"
    run = train(
        make_config(
            {"data": str(text), "model": str(minilm), "output": str(tmp_path / "run"), "max_steps": 60, "seed": seed}
        )
    )
    assert similarity_score(load_encoder(minilm), pairs) == pytest.approx(82.03, abs=0.02)
    score = similarity_score(run.encoder, pairs)
    sys.stdout.write(f"seed {seed}: 82.03 -> {score:.2f}\n")
    assert score is not None
    assert score >= 82.5
