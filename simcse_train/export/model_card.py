"""The model card of an export: base model, text, settings, and what was measured."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from string import Template

from huggingface_hub import ModelCard
from yaml import YAMLError

from simcse_train.config import STARTER
from simcse_train.encoders.encoder import Encoder, dropout_settings
from simcse_train.encoders.loading import STARTER_FOLDER
from simcse_train.report.verdict import MEASURES, judge, only_measures
from simcse_train.runs.checkpoint import State
from simcse_train.runs.metrics import read_metrics
from simcse_train.version import __version__

TITLES = {"score": "labelled pairs (Spearman x 100)"}
TRAINED = "trained by unsupervised SimCSE (Gao, Yao & Chen, EMNLP 2021)"
UNCHANGED = "unchanged: unsupervised SimCSE (Gao, Yao & Chen, EMNLP 2021) did not make it better"
TEMPLATE = Path(__file__).parent / "model_card.md"


def model_card(encoder: Encoder, state: State, run: Path, name: str) -> str:
    """Return the README of an export in the Hugging Face format, with the scores logged in the run folder."""
    config = state.config()
    measured = {line["step"]: line for line in read_metrics(run) if "uniformity" in line}
    before, after = (only_measures(measured.get(step, {})) for step in (0, state.step))
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
        scores=_scores(before, after, state.step),
        license=_licence(config.model),
        origin=UNCHANGED if state.step == 0 else TRAINED,
    )


def _scores(before: Mapping[str, float], after: Mapping[str, float], step: int) -> str:
    names = [name for name in MEASURES if name in before or name in after]
    if not names:
        return "None were measured."
    lines = [f"| measure | before | step {step} |", "|---|---|---|"]
    for name in names:
        values = [f"{found[name]:.{MEASURES[name]}f}" if name in found else "" for found in (before, after)]
        lines.append(f"| {TITLES.get(name, name.replace('_', ' '))} | {values[0]} | {values[1]} |")
    note = "All but the score were measured on held-out sentences of the text, without labels."
    return "\n".join([*lines, "", note, "", f"{judge(before, after)}"])


def _licence(base: str) -> str:
    """Return the card's line with the licence that the card of the base model names; nothing where it names none."""
    card = (STARTER_FOLDER if base == STARTER else Path(base).expanduser()) / "README.md"
    if not card.is_file():  # `load` would take it for a name on the hub
        return ""
    try:
        name = ModelCard.load(card, ignore_metadata_errors=True).data.license
    except (OSError, ValueError, YAMLError):
        return ""
    return f"license: {name}\n" if isinstance(name, str) and re.fullmatch(r"[\w.+-]+", name) else ""
