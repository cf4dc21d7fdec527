"""A trained encoder -> a folder that other libraries load.

The folder is a sentence-transformers model with the encoder's files at its root, so `SentenceTransformer(path)` and
`AutoModel.from_pretrained(path)` both open it. It carries its own pooling: nobody can evaluate it with the head by mistake.
"""

from __future__ import annotations

import json
from pathlib import Path
from string import Template
from typing import Any

import numpy as np

from simcse_train import __version__
from simcse_train.checkpoint import State, checkpoint_path, damage, find_checkpoint, load_checkpoint_encoder, load_state, run_of
from simcse_train.config import InputError
from simcse_train.encoder import Encoder, dropout_settings, save_encoder
from simcse_train.loading import load_encoder
from simcse_train.writing import SaveError, write_whole

PROBES = ("A man is playing a guitar.", "The market closed higher on Friday.", "Why?", "一只猫坐在垫子上。", "")
TEMPLATE = Path(__file__).parent / "model_card.md"


def export(source: Path, target: Path, which: str | None = None) -> Path:
    """Write the encoder of a run or checkpoint to the new folder `target` and return the checkpoint it came from.

    `which` is best or last; without it best is taken where labelled pairs were scored. Raises `InputError` if the source is no run or
    the target is in use, `SaveError` if the folder can't be written or does not give the same embeddings when loaded again.
    """
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise InputError(f"{target} exists already. Choose a new folder for the export, or remove it first.")
    checkpoint, _ = find_checkpoint(source)
    state = load_state(checkpoint)
    if checkpoint != source:
        checkpoint = choose_checkpoint(source, checkpoint, which)
    elif which is not None:
        raise InputError(f"{source} is one checkpoint; --checkpoint {which} needs the folder of the whole run.")
    state = load_state(checkpoint)
    write_export(load_checkpoint_encoder(checkpoint, state.config()), state, run_of(checkpoint), target)
    return checkpoint


def choose_checkpoint(run: Path, newest: Path, which: str | None) -> Path:
    """Return the best checkpoint of a run where there is one and `which` is not last, else the newest.

    Raises `InputError` if the best one was asked for and there is none, or if it is damaged.
    """
    best_step = load_state(newest).best_step
    if which == "last" or (which is None and best_step is None):
        return newest
    if best_step is None:
        raise InputError(f"{run} has no best checkpoint, since it was trained without --eval. Use --checkpoint last.")
    best = checkpoint_path(run, best_step)
    if reason := damage(best):
        raise InputError(f"The best checkpoint {best} can't be used: {reason}. Use --checkpoint last.")
    return best


def write_export(encoder: Encoder, state: State, run: Path, target: Path) -> None:
    """Write an encoder as a folder of its own, load it again, and compare the embeddings; raises `SaveError` if they differ."""
    expected = encoder.encode(PROBES)

    def write(folder: Path) -> None:
        save_encoder(encoder, folder)
        (folder / "README.md").write_text(
            model_card(encoder, state, run, run.name if target.parent == run else target.name), encoding="utf-8"
        )
        if not np.array_equal(load_encoder(folder).encode(PROBES), expected):
            raise SaveError("the exported encoder gives other embeddings than the trained one; please report this")

    write_whole(target, write)


def model_card(encoder: Encoder, state: State, run: Path, name: str) -> str:
    """Return the README of an export: base model, data, settings and the scores that were measured."""
    config = state.config()
    measured = [line for line in read_metrics(run) if "uniformity" in line]
    dropout = ", ".join(f"{key} {value:g}" for key, value in dropout_settings(encoder.model.config).items())
    return Template(TEMPLATE.read_text(encoding="utf-8")).substitute(
        config.model_dump(),
        name=name,
        base_model=state.base_model,
        version=__version__,
        data=", ".join(Path(entry).name for entry in config.data),
        sentences=f"{state.sentences:,}",
        dimension=encoder.hidden_size,
        pooling=encoder.pooling,
        step=state.step,
        steps=state.steps,
        dropout=dropout,
        scores=_scores(measured, state.step),
    )


def _scores(measured: list[dict[str, Any]], step: int) -> str:
    shown = [line for line in measured if line["step"] in (0, step)]
    if not shown:
        return "None were measured."
    labelled = any("score" in line for line in shown)
    lines = [
        "| step | " + ("labelled pairs (Spearman x 100) | " if labelled else "") + "alignment | uniformity |",
        "|---|" + ("---|" if labelled else "") + "---|---|",
    ]
    for line in shown:
        score = f"{line['score']:.2f} | " if line.get("score") is not None else "| " if labelled else ""
        lines.append(f"| {line['step']} | {score}{line['alignment']:.4f} | {line['uniformity']:.4f} |")
    note = "Alignment and uniformity are those of held-out lines of the text (Wang & Isola 2020); lower is better for both."
    return "\n".join([*lines, "", note])


def read_metrics(run: Path) -> list[dict[str, Any]]:
    """Return the logged steps of a run, up to the first line that a kill cut short or that was damaged."""
    path = run / "metrics.jsonl"
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines() if path.exists() else []
    found: list[dict[str, Any]] = []
    for line in lines:
        try:
            record = json.loads(line)
        except ValueError:
            break
        if not isinstance(record, dict) or not isinstance(record.get("step"), int):
            break
        found.append(record)
    return found
