"""The model card of an export: base model, text, settings, and what was measured."""

from __future__ import annotations

import re
from collections.abc import Mapping
from html import escape
from pathlib import Path
from string import Template

from huggingface_hub import ModelCard
from yaml import YAMLError

from simcse_train.config import STARTER, TrainConfig
from simcse_train.data import hub
from simcse_train.data.display import shown
from simcse_train.encoders.encoder import Encoder, dropout_settings
from simcse_train.encoders.sources import Source
from simcse_train.errors import InputError
from simcse_train.report.verdict import MEASURES, Verdict, judge_run, measures_by_step
from simcse_train.runs.checkpoint import State
from simcse_train.runs.metrics import read_metrics
from simcse_train.version import __version__

TITLES = {"score": "labelled pairs (Spearman x 100)"}
METHOD = "SimCSE (Gao, Yao & Chen, EMNLP 2021)"
TEMPLATE = Path(__file__).parent / "model_card.md"
HUB_NAME = r"[\w.-]+(/[\w.-]+)?"


def model_card(encoder: Encoder, state: State, run: Path, name: str, *, backend: str = "") -> str:
    """Return the README of an export in the Hugging Face format, with the scores logged in the run folder.

    `backend` is what sentence-transformers has to be told to load the export, if anything.
    """
    config = state.config()
    source = state.source or config.model
    lines = read_metrics(run)
    measured = measures_by_step(lines)
    before, after = (measured.get(step, {}) for step in (0, state.step))
    dropout = ", ".join(f"{key} {value:g}" for key, value in dropout_settings(encoder.model.config).items())
    method = f"{'unsupervised' if config.data else 'supervised'} {METHOD}"
    measured_on = "held-out sentences of the text" if config.data else "sentences of the pairs"
    return Template(TEMPLATE.read_text(encoding="utf-8")).substitute(
        config.model_dump(),
        name=escape(shown(name)),
        base_model=as_code(state.base_model),
        version=__version__,
        text=_text(config, state.counts),
        learned=f"{state.sentences:,} sentences" if config.data else "pairs",
        dimension=encoder.hidden_size,
        encoded_length=encoder.max_length,
        pooling=encoder.pooling,
        step=state.step,
        steps=state.steps,
        dropout=dropout,
        scores=_scores(before, after, state.step, measured_on, judge_run(lines, state.step)),
        metadata=licence(source) + _base(source),
        origin=f"unchanged: {method} did not make it better" if state.step == 0 else f"trained by {method}",
        backend=f', backend="{backend}"' if backend else "",
    )


def exported_step(folder: Path) -> tuple[int, int] | None:
    """Return the step that the card in an export's folder names, and the steps of its run; None where it names none."""
    try:
        card = (folder / "README.md").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
    found = re.search(r"^\| steps \| (\d+) of (\d+),", card, re.MULTILINE)
    return (int(found[1]), int(found[2])) if found else None


def as_code(text: str) -> str:
    """Return a name as code of Markdown, so that nothing in it is read as Markdown or HTML."""
    return "`" + shown(text).replace("`", "'").replace("|", "\\|") + "`"


def _text(config: TrainConfig, counts: Mapping[str, int] | None) -> str:
    """Return which files were learned from, without their folders, and what became of their lines."""
    entries = [*config.data, *filter(None, [config.pairs])]
    names = ", ".join(as_code(entry if entry.startswith(hub.PREFIX) else Path(entry).name) for entry in entries)
    if counts is None:
        return names
    lines, empty, duplicates, cut = (f"{counts[key]:,}" for key in ("lines", "empty", "duplicates", "cut"))
    return f"{names}: {lines} lines, {empty} empty and {duplicates} duplicates dropped, {cut} cut"


def _scores(
    before: Mapping[str, float], after: Mapping[str, float], step: int, measured_on: str, verdict: Verdict
) -> str:
    names = [name for name in MEASURES if name in before or name in after]
    if not names:
        return "None were measured."
    lines = [f"| measure | before | step {step} |", "|---|---|---|"]
    for name in names:
        values = [f"{found[name]:.{MEASURES[name]}f}" if name in found else "" for found in (before, after)]
        lines.append(f"| {TITLES.get(name, name.replace('_', ' '))} | {values[0]} | {values[1]} |")
    note = f"All but the score were measured on {measured_on}, without labels."
    return "\n".join([*lines, "", note, "", str(verdict)])


def licence(base: str) -> str:
    """Return the card's line with the licence that the card of the base model names; nothing where it names none."""
    try:
        card = Source(base).find("README.md")
        name = ModelCard.load(card, ignore_metadata_errors=True).data.license if card else None
    except (InputError, OSError, ValueError, YAMLError):
        return ""
    return f"license: {name}\n" if isinstance(name, str) and re.fullmatch(r"[\w.+-]+", name) else ""


def _base(model: str) -> str:
    """Return the card's line with the base model, where that has a name on the hub."""
    is_on_hub = model != STARTER and re.fullmatch(HUB_NAME, model) and not Path(model).exists()
    return f"base_model: {model}\n" if is_on_hub else ""
