from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer

from simcse_train import train
from simcse_train.cache import cache_folder
from simcse_train.encoders.loading import load_encoder
from simcse_train.errors import InputError, SaveError
from simcse_train.export import onnx
from simcse_train.export.folder import PROBES
from simcse_train.export.onnx import export_onnx
from simcse_train.runs.folder import checkpoints
from tests.conftest import EXAMPLES
from tests.encoders.families import make_family
from tests.encoders.matrix import make_member
from tests.training.test_loop import settings

for package in onnx.PACKAGES:
    pytest.importorskip(package, reason=f"{package} is not installed")
pytestmark = pytest.mark.filterwarnings("ignore")  # of the exporter's own parts


def embed_as_the_readme_says(folder: Path, second: str = "Another sentence.") -> np.ndarray:
    """Run the README's example, onnxruntime and tokenizers alone, on an export."""
    readme = (EXAMPLES.parent / "README.md").read_text(encoding="utf-8")
    code = next(block for block in readme.split("```python\n") if block.startswith("import numpy")).split("```")[0]
    names: dict[str, np.ndarray] = {}
    assert '"Another sentence."' in code
    exec(code.replace("my-onnx", str(folder)).replace('"Another sentence."', repr(second)), names)
    return names["embeddings"]


@pytest.mark.parametrize("family", ["bert", "roberta", "t5"])
def test_the_graph_gives_the_encoders_embeddings_without_torch(family: str, text: Path, tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    model = (make_member if family == "t5" else make_family)(family, tmp_path / "model")
    (model / "1_Pooling").mkdir()
    (model / "1_Pooling" / "config.json").write_text(json.dumps({"pooling_mode_mean_tokens": True}))
    found = export_onnx(model, tmp_path / "out", data=[str(text)])
    assert found.difference <= 1e-4
    assert found.sentences > 20
    rows = embed_as_the_readme_says(tmp_path / "out")
    assert np.allclose(rows, load_encoder(model).encode(["A sentence.", "Another sentence."]), atol=1e-4)
    long = "the dog runs " * 300  # beyond the model's positions
    rows = embed_as_the_readme_says(tmp_path / "out", long)
    assert np.allclose(rows, load_encoder(model).encode(["A sentence.", long]), atol=1e-4)
    assert not list((tmp_path / "out").glob("*.safetensors"))
    with pytest.raises(InputError, match="exists already"):
        export_onnx(model, tmp_path / "out")


def test_int8_is_smaller_and_says_what_it_keeps(minilm: Path, text: Path, tmp_path: Path) -> None:
    found = export_onnx(minilm, tmp_path / "int8", int8=True, data=[str(text)])
    weights = (minilm / "model.safetensors").stat().st_size
    assert (tmp_path / "int8" / "onnx" / "model.onnx").stat().st_size < weights / 2
    assert found.neighbours_kept is not None
    assert 0.7 < found.neighbours_kept < 1
    assert f"keeps {100 * found.neighbours_kept:.1f} %" in (tmp_path / "int8" / "README.md").read_text()
    with pytest.raises(InputError, match="Name a text with --data"):
        export_onnx(minilm, tmp_path / "unchecked", int8=True)


def test_a_run_is_checked_on_its_text_in_the_cache_and_another_text_is_not_tokenised(
    tiny: Path, text: Path, tmp_path: Path
) -> None:
    other = tmp_path / "german.txt"
    lines = [f"{line} grün, weiß und schön" for line in text.read_text(encoding="utf-8").splitlines()]
    other.write_text("\n".join(lines), encoding="utf-16-le")  # read only with --encoding
    run = train(settings(other, tiny, tmp_path / "run", max_steps=1, encoding="utf-16-le")).folder
    cached = sorted(cache_folder().iterdir())
    assert export_onnx(run, tmp_path / "first").sentences == 120 + len(PROBES)
    assert export_onnx(run, tmp_path / "second", data=[str(text)]).sentences == 120 + len(PROBES)
    assert sorted(cache_folder().iterdir()) == cached


def test_a_graph_that_differs_is_not_put_in_place(tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    off = load_encoder(tiny).encode(PROBES) + np.float32(1e-3)
    monkeypatch.setattr(onnx, "_write_graph", lambda *_: None)
    monkeypatch.setattr(onnx, "embed_with_onnxruntime", lambda *_: off)
    with pytest.raises(SaveError, match="differ from the encoder's"):
        export_onnx(tiny, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_model_that_the_exporter_does_not_know_is_named(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise RuntimeError("\x1b[96mno such part\x1b[0m")

    monkeypatch.setattr(torch.onnx, "export", fail)
    with pytest.raises(SaveError, match=r"torch can't make a graph of an encoder of the type bert \(no such part\)"):
        export_onnx(tiny, tmp_path / "out")


def test_an_encoder_that_reads_padding_is_refused_before_a_graph_is_made(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="depend on the padding beside a sentence"):
        export_onnx(make_member("fnet", tmp_path / "fnet"), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_checkpoint_is_chosen_only_of_a_run_and_a_table_has_columns(tiny: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="--checkpoint best needs the folder of a whole run, and .* is none"):
        export_onnx(tiny, tmp_path / "out", which="best")
    (tmp_path / "t.csv").write_text("title;body\n" + "".join(f"a cat {i};the dog {i}\n" for i in range(30)))
    with pytest.raises(InputError, match="--text-column"):
        export_onnx(tiny, tmp_path / "out", data=[str(tmp_path / "t.csv")])
    assert export_onnx(tiny, tmp_path / "out", data=[str(tmp_path / "t.csv")], text_column="body").sentences > 30


def test_missing_packages_are_named(tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onnx, "find_spec", lambda name: None if name == "onnxscript" else True)
    with pytest.raises(InputError, match="needs onnxscript. Install"):
        export_onnx(tiny, tmp_path / "out")


def test_a_checkpoint_is_checked_and_described_as_its_run_is(tiny: Path, text: Path, tmp_path: Path) -> None:
    run = train(settings(text, tiny, tmp_path / "run", max_steps=2, save_every=1)).folder
    assert export_onnx(checkpoints(run)[0], tmp_path / "out").sentences == 120 + len(PROBES)
    card = (tmp_path / "out" / "README.md").read_text(encoding="utf-8")
    assert "| steps | 1 of 2, batch size 8 |" in card
    assert "corpus.txt" in card


def test_the_card_says_what_of_the_encoder_is_not_in_the_graph(tiny: Path, tmp_path: Path) -> None:
    model = shutil.copytree(tiny, tmp_path / "model")
    kinds = ("Transformer", "Pooling", "Dense", "Normalize")
    modules = [
        {"idx": i, "name": str(i), "path": f"{i}_{kind}" if i else "", "type": f"sentence_transformers.models.{kind}"}
        for i, kind in enumerate(kinds)
    ]
    (model / "modules.json").write_text(json.dumps(modules))
    for folder, content in (("1_Pooling", {"pooling_mode_mean_tokens": True}), ("2_Dense", {})):
        (model / folder).mkdir()
        (model / folder / "config.json").write_text(json.dumps(content or {"in_features": 32, "out_features": 8}))
    layer = torch.nn.Linear(32, 8)
    save_file({f"linear.{k}": v for k, v in layer.state_dict().items()}, model / "2_Dense" / "model.safetensors")
    prompts = {"prompts": {"query": "the dog: "}, "default_prompt_name": "query"}
    (model / "config_sentence_transformers.json").write_text(json.dumps(prompts))
    export_onnx(model, tmp_path / "out")
    card = (tmp_path / "out" / "README.md").read_text(encoding="utf-8")
    assert 'The prompt `"the dog: "` stands before every sentence.' in card
    assert "pooled with `mean`, then passed through `2_Dense` of this folder,\nand embeddings" in card
    assert (tmp_path / "out" / "2_Dense" / "model.safetensors").exists()
    export_onnx(tiny, tmp_path / "plain")
    card = (tmp_path / "plain" / "README.md").read_text(encoding="utf-8")
    assert "pooled with `cls`,\nand embeddings are compared by cosine.\n" in card


def test_a_text_is_cut_on_the_side_on_which_the_encoder_cuts(tiny: Path, tmp_path: Path) -> None:
    model = shutil.copytree(tiny, tmp_path / "model")
    path = model / "tokenizer_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"truncation_side": "left"}))
    export_onnx(model, tmp_path / "out")
    encoder, text = load_encoder(model), "the dog runs " * 30 + "in the park"
    tokens = Tokenizer.from_file(str(tmp_path / "out" / "tokenizer.json")).encode(text).ids
    assert [tokens] == encoder.tokenizer.tokenize([text], encoder.max_length)
