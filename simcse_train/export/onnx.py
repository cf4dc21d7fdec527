"""Export to ONNX: a folder for `SentenceTransformer(path, backend="onnx")`, or for onnxruntime and tokenizers alone.

The graph is made by torch's exporter, for any number of sentences and tokens, and checked before it is put in place:
it must give the encoder's embeddings. Its int8 form (dynamic quantisation by onnxruntime) changes them visibly; how
many of the nearest neighbours it keeps is measured on sentences of the user's. Needs the extra `onnx`.
"""

from __future__ import annotations

import logging
import re
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from tokenizers import Tokenizer
from torch import Tensor, nn
from torch.nn.functional import normalize
from transformers import AutoConfig

from simcse_train.data.batches import held_out_sentences
from simcse_train.data.corpus import open_corpus
from simcse_train.data.sample import sample_text
from simcse_train.encoders.encoder import Encoder
from simcse_train.encoders.pooling import pool
from simcse_train.encoders.saving import save_encoder
from simcse_train.encoders.weights import model_class
from simcse_train.errors import InputError, SaveError, one_line
from simcse_train.evaluation.geometry import neighbours_kept
from simcse_train.export.folder import PROBES, load_saved_encoder, load_trained, require_new_folder
from simcse_train.export.model_card import model_card
from simcse_train.export.onnx_card import GRAPH, about_graph, card_of_copy
from simcse_train.manifest import STATE
from simcse_train.runs.atomic import write_folder
from simcse_train.runs.checkpoint import State
from simcse_train.runs.folder import checkpoints
from simcse_train.search.index import nearest

PACKAGES = ("onnx", "onnxscript", "onnxruntime")
TOLERANCE = 1e-4  # of each value of a normalised embedding, in float32
NEIGHBOURS = 10
SENTENCES = 2000  # of a given text, on which an export is checked
BATCH = 32


@dataclass(frozen=True)
class OnnxExport:
    """What was checked of an export: the largest difference of a value, and of int8 the share of neighbours kept."""

    difference: float
    neighbours_kept: float | None
    sentences: int  # on which it was checked


def export_onnx(
    source: Path,
    target: Path,
    *,
    which: str | None = None,
    int8: bool = False,
    data: Sequence[str] = (),
    text_column: str | None = None,
    encoding: str | None = None,
) -> OnnxExport:
    """Write the encoder of a run, a checkpoint or a folder as ONNX to the new folder `target`.

    data: text on whose sentences the export is checked; without it, held-out sentences of a run's own text. int8 needs
    them. Raises `InputError` if the packages are missing, the target is in use or there are no sentences to check int8
    on, `SaveError` if the graph gives other embeddings than the encoder or cannot be written.
    """
    missing = [name for name in PACKAGES if find_spec(name) is None]
    if missing:
        raise InputError(
            f"--format onnx needs {', '.join(missing)}. Install what is missing: pip install 'simcse-train[onnx]'."
        )
    require_new_folder(target)
    given = sample_text(data, text_column, SENTENCES, encoding)[1] if data else []
    encoder, sentences, card = _load(source, which, given, target.name)
    if int8 and len(sentences) < 2 * NEIGHBOURS:
        raise InputError(
            f"--int8 changes the embeddings, so it is checked on at least {2 * NEIGHBOURS} sentences, and there are "
            f"{len(sentences)}. Name a text with --data."
        )
    if encoder.equal_lengths:
        raise InputError(
            f"--format onnx: the states of {source} depend on the padding beside a sentence, so that a graph for "
            "padded batches would give other embeddings. Use the exported folder itself."
        )
    # A sentence without a single token has no embedding to compare.
    checked = [text for text in [*PROBES, *sentences] if encoder.tokenizer.tokenize([text], encoder.max_length)[0]]
    expected = encoder.encode(checked)
    found: list[OnnxExport] = []

    def write(folder: Path) -> None:
        save_encoder(encoder, folder)
        _keep_truncation(folder / "tokenizer.json", encoder)
        (folder / GRAPH).parent.mkdir()
        _write_graph(folder, folder / GRAPH)
        for weights in folder.glob("*.safetensors"):
            weights.unlink()
        rows = embed_with_onnxruntime(folder / GRAPH, encoder, checked)
        difference = float(np.abs(rows - expected).max())
        if difference > TOLERANCE:
            raise SaveError(f"its embeddings differ from the encoder's by up to {difference:.2g}; please report this")
        kept = None
        if int8:
            _quantise(folder / GRAPH)
            rows = embed_with_onnxruntime(folder / GRAPH, encoder, checked)
            difference = float(np.abs(rows - expected).max())
            kept = _neighbours_kept(expected, rows)
        found.append(OnnxExport(difference, kept, len(checked)))
        (folder / "README.md").write_text(card + about_graph(encoder, describe(found[0])), encoding="utf-8")

    write_folder(target, write, replaces=False)
    return found[0]


def describe(export: OnnxExport) -> str:
    """Return what was checked of an export in a sentence."""
    if export.neighbours_kept is None:
        return (
            f"Its embeddings of {export.sentences:,} sentences differ from the encoder's by at most "
            f"{export.difference:.1e} in any value."
        )
    return (
        f"Its weights are int8: of the {NEIGHBOURS} nearest neighbours of {export.sentences:,} sentences it keeps "
        f"{100 * export.neighbours_kept:.1f} %."
    )


@torch.inference_mode()
def embed_with_onnxruntime(graph: Path, encoder: Encoder, sentences: Sequence[str]) -> NDArray[np.float32]:
    """Return the normalised embeddings (sentences, hidden) from the states that onnxruntime computes on the CPU.

    `encoder` gives the tokenizer, the pooling and the modules after it. A sentence without a token gives zeros.
    """
    import onnxruntime

    session = onnxruntime.InferenceSession(str(graph), providers=["CPUExecutionProvider"])
    out = np.zeros((len(sentences), encoder.hidden_size), dtype=np.float32)
    tokens = encoder.tokenizer.tokenize(sentences, encoder.max_length)
    full = [place for place, row in enumerate(tokens) if row]
    for start in range(0, len(full), BATCH):
        places = full[start : start + BATCH]
        rows = [tokens[place] for place in places]
        lengths = torch.tensor([len(row) for row in rows])
        ids = np.full((len(rows), int(lengths.max())), encoder.tokenizer.padding_id, dtype=np.int64)
        mask = np.zeros_like(ids)
        for i, row in enumerate(rows):
            ids[i, : len(row)], mask[i, : len(row)] = row, 1
        states = session.run(None, {"input_ids": ids, "attention_mask": mask})[0]  # (sentences, tokens, hidden)
        packed = torch.from_numpy(states[mask == 1])  # (total, hidden)
        out[places] = normalize(encoder.modules_after(pool(packed, lengths, encoder.pooling))).numpy()
    return out


def _load(source: Path, which: str | None, sentences: list[str], name: str) -> tuple[Encoder, list[str], str]:
    """Return the encoder to export, the sentences to check it on, and the model card of an export of this name."""
    if not (checkpoints(source) or (source / STATE).exists()):  # neither a run nor a checkpoint
        if which is not None:
            raise InputError(f"--checkpoint {which} needs the folder of a whole run, and {source} is none.")
        encoder = load_saved_encoder(str(source))
        return encoder, sentences, card_of_copy(source, name)
    state, encoder, run = load_trained(source, which)
    encoder.head = None
    card = model_card(encoder, state, run, name, backend="onnx")
    return encoder, sentences or _held_out(encoder, state), card


def _held_out(encoder: Encoder, state: State) -> list[str]:
    """Return the sentences that a run held out, of its tokenised text in the cache; none if the text is gone."""
    config = state.config()
    if not config.data:
        return []
    try:
        corpus = open_corpus(
            config.data,
            config.text_column,
            encoder.tokenizer,
            config.max_length,
            expected=state.corpus,
            encoding=config.encoding,
        )
    except InputError:  # whether sentences are needed is for the caller to say
        return []
    numbers = held_out_sentences(len(corpus))
    return corpus.texts(numbers if len(numbers) >= 2 * NEIGHBOURS else np.arange(min(len(corpus), SENTENCES)))


class _States(nn.Module):
    """The part of an encoder that becomes the graph: token ids and mask to the states of the last layer."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        states: Tensor = self.model(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
        return states


def _keep_truncation(tokenizer: Path, encoder: Encoder) -> None:
    """Let a tokenizer.json cut as the encoder does: whoever runs the graph without torch has nothing else of it."""
    if tokenizer.exists():
        fast = Tokenizer.from_file(str(tokenizer))
        fast.enable_truncation(encoder.max_length, direction=encoder.tokenizer.pretrained.truncation_side)
        fast.save(str(tokenizer))


def _write_graph(folder: Path, graph: Path) -> None:
    """Write the graph of the encoder in a folder; the number of sentences and of tokens stay open."""
    # Loaded again with an attention that exporters know, not the packed one.
    loader = model_class(AutoConfig.from_pretrained(folder))
    model = loader.from_pretrained(folder, attn_implementation="eager", dtype=torch.float32).eval()
    ids = torch.ones(2, 7, dtype=torch.long)
    mask = torch.ones(2, 7, dtype=torch.long)
    mask[1, 4:] = 0
    names = ("input_ids", "attention_mask")
    dynamic = {0: torch.export.Dim.DYNAMIC, 1: torch.export.Dim.DYNAMIC}
    with warnings.catch_warnings(), _quiet("torch.onnx"), torch.inference_mode(mode=False), torch.no_grad():
        warnings.simplefilter("ignore")  # of the exporter, about its own parts
        try:
            torch.onnx.export(
                _States(model),
                (ids, mask),
                str(graph),
                input_names=list(names),
                output_names=["last_hidden_state"],
                dynamic_shapes=dict.fromkeys(names, dynamic),
                dynamo=True,
                external_data=False,
                verbose=False,
            )
        except Exception as error:  # the exporter does not know every model's parts
            reason = re.sub("\x1b\\[[0-9;]*m", "", one_line(error))  # without its colours
            kind = model.config.model_type
            raise SaveError(f"torch can't make a graph of an encoder of the type {kind} ({reason})") from None


@contextmanager
def _quiet(name: str) -> Iterator[None]:
    """Let a logger of a library say nothing but errors: it speaks of what nobody here can change."""
    logger = logging.getLogger(name)
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)


def _quantise(graph: Path) -> None:
    """Replace a graph by its int8 form."""
    from onnxruntime.quantization import QuantType, quantize_dynamic

    small = graph.with_name("int8.onnx")
    with _quiet(""):
        quantize_dynamic(graph, small, weight_type=QuantType.QInt8, per_channel=True)
    small.replace(graph)


def _neighbours_kept(before: NDArray[np.float32], after: NDArray[np.float32]) -> float:
    """Return the mean share of each row's nearest rows that are the same in both spaces (rows, hidden)."""
    own = torch.arange(len(before))
    places = [nearest(rows, rows, NEIGHBOURS, exclude=own)[1] for rows in map(torch.from_numpy, (before, after))]
    return neighbours_kept(*places)
