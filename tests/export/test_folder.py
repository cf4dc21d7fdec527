from __future__ import annotations

import json
import shutil
import signal
import warnings
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from simcse_train.config import make_config
from simcse_train.encoders.encoder import Encoder
from simcse_train.encoders.loading import load_encoder
from simcse_train.encoders.saving import save_encoder
from simcse_train.errors import InputError, SaveError, Stopped
from simcse_train.export import folder as module
from simcse_train.export.folder import export
from simcse_train.export.model_card import licence, model_card
from simcse_train.runs.checkpoint import load_state
from simcse_train.runs.folder import checkpoints
from simcse_train.training import monitor
from simcse_train.training.start import train
from tests.conftest import make_bert
from tests.encoders.families import make_family
from tests.training.test_loop import interrupted_at

SENTENCES = ["a man plays the guitar.", "", "the big red dog runs in the park on the blue hill!"]


def trained(text: Path, model: Path, folder: Path, **changes: object) -> Path:
    base = {
        "data": str(text),
        "model": str(model),
        "output": str(folder),
        "batch_size": 8,
        "max_length": 16,
        "max_steps": 4,
    }
    return train(make_config({**base, "save_every": 2, **changes})).folder


@pytest.mark.parametrize("family", ["bert", "roberta", "distilbert", "mpnet", "albert"])
@pytest.mark.parametrize("pooling", ["cls", "mean"])
def test_other_libraries_load_an_export_with_the_same_embeddings(
    family: str, pooling: str, text: Path, tmp_path: Path
) -> None:
    sentence_transformers = pytest.importorskip("sentence_transformers")
    from transformers import AutoModel, AutoTokenizer

    (tmp_path / "model").mkdir()
    run = trained(text, make_family(family, tmp_path / "model"), tmp_path / "run", pooling=pooling)
    export(run, tmp_path / "out")
    ours = load_encoder(tmp_path / "out").encode(SENTENCES)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = sentence_transformers.SentenceTransformer(str(tmp_path / "out"), device="cpu")
        theirs = model.encode(SENTENCES, normalize_embeddings=True)
    assert np.allclose(ours, theirs, atol=1e-5)
    plain, tokenizer = AutoModel.from_pretrained(tmp_path / "out"), AutoTokenizer.from_pretrained(tmp_path / "out")
    with torch.inference_mode():
        states = plain(**tokenizer(SENTENCES[:1], return_tensors="pt")).last_hidden_state[0]
    row = states[0] if pooling == "cls" else states.mean(0)
    assert np.allclose(ours[0], (row / row.norm()).numpy(), atol=1e-5)


def test_the_card_says_what_was_trained_on_what_and_how_it_scored(text: Path, tiny: Path, tmp_path: Path) -> None:
    pairs = tmp_path / "pairs.tsv"
    pairs.write_text("a man\tthe man\t5\na cat\tguitar\t0\na dog\tthe dog runs\t3\n")
    model = shutil.copytree(tiny, tmp_path / "tiny")
    (model / "README.md").write_text("---\nlicense: mit\n---\n# Base\n")
    run = trained(text, model, tmp_path / "run", eval=str(pairs), seed=11)
    export(run, tmp_path / "out", "last")
    card = (tmp_path / "out" / "README.md").read_text()
    for expected in (
        "| sentences, in training | cut at 16 tokens |",
        f"| sentences, in this folder | cut at {load_encoder(tmp_path / 'out').max_length} tokens |",
        "tiny",
        "corpus.txt",
        "108",
        "0.05",
        "3e-05",
        "`cls`",
        "| seed | 11 |",
        "step 4 |",
        "Verdict: ",
        "license: mit\n",
        "uniformity",
        "# out",
    ):
        assert expected in card, expected
    assert "`corpus.txt`: 120 lines, 0 empty and 0 duplicates dropped, " in card
    assert str(tmp_path) not in card
    assert "$" not in card


def test_names_on_a_card_are_neither_markdown_nor_html(text: Path, tiny: Path, tmp_path: Path) -> None:
    model = shutil.copytree(tiny, tmp_path / "ti`ny|\x1b[31m")
    data = shutil.copy(text, tmp_path / "a|b`c\n<script>.txt")
    run = trained(Path(data), model, tmp_path / "<b>run")
    export(run, tmp_path / "<i>out", "last")
    card = (tmp_path / "<i>out" / "README.md").read_text()
    assert "# &lt;i&gt;out\n" in card
    assert "| base model | `ti'ny\\|␛[31m` |" in card
    assert "| text | `a\\|b'c <script>.txt`: 120 lines" in card
    assert "base_model:" not in card  # a folder has no name on the hub


def test_a_base_model_on_the_hub_is_named_for_it(tiny: Path, text: Path, tmp_path: Path) -> None:
    run = trained(text, tiny, tmp_path / "run")
    state = load_state(checkpoints(run)[-1])
    older = replace(state, settings=state.settings | {"model": "someone/some-bert"}, counts=None, source=None)
    for named in (older, replace(state, source="someone/some-bert")):
        card = model_card(load_encoder(tiny), named, run, "out")
        assert card.split("---")[1].endswith("base_model: someone/some-bert\n")
    assert "| text | `corpus.txt` |" in model_card(load_encoder(tiny), older, run, "out")  # it has no counts


def test_a_card_says_whether_pairs_or_a_text_were_learned_from(text: Path, tiny: Path, tmp_path: Path) -> None:
    (tmp_path / "pairs.csv").write_text("anchor,positive\n" + "".join(f"a man {i},the man {i}\n" for i in range(30)))
    runs = {
        "unsupervised": trained(text, tiny, tmp_path / "text", max_steps=1),
        "supervised": trained(text, tiny, tmp_path / "pairs", max_steps=1, data=[], pairs=str(tmp_path / "pairs.csv")),
    }
    for method, run in runs.items():
        export(run, tmp_path / method, "last")
        assert f" trained by {method} SimCSE" in (tmp_path / method / "README.md").read_text()


@pytest.mark.parametrize(
    ("named", "line"),
    [
        ("apache-2.0", "license: apache-2.0\n"),
        ('"mit\\nbase_model: someone/other"', ""),
        ('"mit # or not"', ""),
        ("[mit, other]", ""),
    ],
)
def test_a_licence_is_taken_over_only_if_it_is_a_name(named: str, line: str, tiny: Path, tmp_path: Path) -> None:
    model = shutil.copytree(tiny, tmp_path / "model")
    (model / "README.md").write_text(f"---\nlicense: {named}\n---\n# Base\n")
    assert licence(str(model)) == line


def test_an_export_that_loads_differently_is_refused(
    text: Path, tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = trained(text, tiny, tmp_path / "run")
    original = save_encoder

    def wrong_pooling(encoder: Encoder, folder: Path) -> None:
        original(encoder, folder)
        (folder / "1_Pooling" / "config.json").write_text(json.dumps({"pooling_mode": "mean"}))

    monkeypatch.setattr(module, "save_encoder", wrong_pooling)
    with pytest.raises(SaveError, match="other embeddings"):
        export(run, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_best_and_last_and_one_checkpoint_can_be_exported(text: Path, tiny: Path, tmp_path: Path) -> None:
    run = trained(text, tiny, tmp_path / "run")
    assert export(run, tmp_path / "last", "last") == 4
    assert export(checkpoints(run)[0], tmp_path / "first") == 2
    first, last = (load_encoder(tmp_path / name).encode(SENTENCES) for name in ("first", "last"))
    assert not np.array_equal(first, last)
    with pytest.raises(InputError, match="is one checkpoint; --checkpoint best needs the folder of the whole run"):
        export(checkpoints(run)[0], tmp_path / "x", "best")
    assert export(run, tmp_path / "best", "best") == 4  # without labels, the last that is not harmed
    with pytest.raises(InputError, match="exists already"):
        export(run, tmp_path / "last")
    with pytest.raises(InputError, match="not a run"):
        export(make_bert(tmp_path / "model"), tmp_path / "x")


def test_a_run_that_measured_nothing_since_it_began_is_exported_as_it_stands(
    text: Path, tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        interrupted_at(patch, 3)
        with pytest.raises(Stopped):
            trained(text, tiny, tmp_path / "run", eval_every=100)
    assert export(tmp_path / "run", tmp_path / "out") == 3
    now = load_encoder(checkpoints(tmp_path / "run")[-1] / "encoder").encode(SENTENCES)
    assert np.array_equal(load_encoder(tmp_path / "out").encode(SENTENCES), now)
    assert not np.array_equal(load_encoder(tiny).encode(SENTENCES), now)
    card = (tmp_path / "out" / "README.md").read_text()
    assert "trained by unsupervised" in card
    assert "Verdict: no clear change. The encoder was not measured at this step." in card
    with pytest.raises(InputError, match="nothing was measured yet. Use --checkpoint last"):
        export(tmp_path / "run", tmp_path / "x", "best")


def test_a_run_that_took_no_step_has_nothing_to_export(
    text: Path, tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:

    def stopping(_: torch.Tensor) -> float:
        signal.raise_signal(signal.SIGTERM)
        return 0.0

    with monkeypatch.context() as patch:
        patch.setattr(monitor, "uniformity", stopping)
        with pytest.raises(Stopped):
            trained(text, tiny, tmp_path / "run")
    assert [path.name for path in checkpoints(tmp_path / "run")] == ["step-00000000"]
    for which in (None, "last", "best"):
        with pytest.raises(InputError, match="stopped before its first step: there is nothing to export yet"):
            export(tmp_path / "run", tmp_path / "x", which)


def test_places_that_no_export_can_take_are_refused_before_anything_is_loaded(
    text: Path, tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = trained(text, tiny, tmp_path / "run")
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path / "empty")
    with pytest.raises(InputError, match="is the folder that you are in"):
        export(run, Path())
    with pytest.raises(InputError, match="corpus.txt is no folder. Choose another place"):
        export(run, text / "below" / "out")
    assert export(run, Path("out")) == 4
    monkeypatch.chdir(run)
    (tmp_path / "given").mkdir()
    assert export(Path(), tmp_path / "given") == 4  # an empty folder may be there
    assert "# given" in (tmp_path / "given" / "README.md").read_text()
