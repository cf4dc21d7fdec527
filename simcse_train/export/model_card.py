"""The model card of an export: base model, text, settings, and what was measured."""

from __future__ import annotations

from pathlib import Path
from string import Template
from typing import Any

from simcse_train.encoders.encoder import Encoder, dropout_settings
from simcse_train.runs.checkpoint import State
from simcse_train.runs.metrics import read_metrics
from simcse_train.version import __version__

TEMPLATE = Path(__file__).parent / "model_card.md"


def model_card(encoder: Encoder, state: State, run: Path, name: str) -> str:
    """Return the README of an export in the Hugging Face format, with the scores logged in the run folder."""
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
    note = "Alignment and uniformity were measured on held-out lines of the text (Wang & Isola 2020); lower is better."
    return "\n".join([*lines, "", note])
