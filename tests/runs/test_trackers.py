from __future__ import annotations

import json
import logging
import threading
from pathlib import Path
from typing import Any

import accelerate.tracking
import pytest

from simcse_train import TrainConfig, resume, train
from simcse_train.config import make_config
from simcse_train.runs import trackers
from simcse_train.runs.metrics import read_metrics


def settings(model: Path, text: Path, output: Path, **changes: Any) -> TrainConfig:
    return make_config(
        {
            "data": [str(text)],
            "model": str(model),
            "output": str(output),
            "batch_size": 16,
            "max_steps": 4,
            "save_every": 2,
            "eval_every": 2,
            "log_every": 1,
        }
        | changes
    )


def test_tensorboard_gets_every_figure_and_a_resumed_run_continues_it(tiny: Path, text: Path, tmp_path: Path) -> None:
    accumulator = pytest.importorskip(
        "tensorboard.backend.event_processing.event_accumulator", reason="tensorboard is not installed"
    )
    run = train(settings(tiny, text, tmp_path / "run", track=["tensorboard"])).folder
    resume(run, {"max_steps": 6})
    events = accumulator.EventAccumulator(str(run / "tensorboard"))
    events.Reload()
    for name in ("loss", "alignment", "uniformity", "learning_rate"):
        expected = {line["step"]: line[name] for line in read_metrics(run) if name in line}
        found = {event.step: event.value for event in events.Scalars(name)}
        assert found == pytest.approx(expected, rel=1e-5)
    assert max(found) == 6
    hyperparameters = [path.read_text() for path in (run / "tensorboard").glob("*/hparams.yml")]
    assert any("temperature: 0.05" in content for content in hyperparameters)


class Failing:
    """Stands in for a tracker's class: a server that refuses, or one that never answers."""

    def __init__(self, **_: Any) -> None:
        self.hangs = False

    def start(self) -> None:
        raise ConnectionError("offline,\nsays the server")


class Hanging(Failing):
    def start(self) -> None:
        threading.Event().wait(60)


@pytest.mark.parametrize(
    ("kind", "warning"),
    [(Failing, "failed (ConnectionError: offline, says the server)"), (Hanging, "does not answer")],
)
def test_a_tracker_that_fails_costs_one_line_and_no_bit(
    tiny: Path,
    text: Path,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
    kind: type[Failing],
    warning: str,
) -> None:
    caplog.set_level(logging.WARNING, "simcse_train")
    monkeypatch.setitem(accelerate.tracking.LOGGER_TYPE_TO_CLASS, "wandb", kind)
    monkeypatch.setattr(trackers, "find_spec", lambda _: True)
    monkeypatch.setattr(trackers, "SECONDS_TO_FINISH", 0.5)
    plain = train(settings(tiny, text, tmp_path / "plain")).folder
    run = train(settings(tiny, text, tmp_path / "run", track=["wandb"])).folder
    assert [message for message in caplog.messages if "--track" in message] == [
        message for message in caplog.messages if warning in message
    ]
    assert warning in caplog.text
    for name in ("model.safetensors", "tokenizer.json"):
        assert (run / "encoder" / name).read_bytes() == (plain / "encoder" / name).read_bytes()


def test_every_tracker_that_is_not_installed_is_named_once(
    tiny: Path, text: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trackers, "find_spec", lambda _: None)
    with trackers.tracked(tmp_path, settings(tiny, text, tmp_path, track=["mlflow", "wandb", "mlflow"])):
        pass
    said = sorted(message for message in caplog.messages if "--track" in message)
    assert [message.partition(",")[0] for message in said] == [
        f"--track {name}: the package {name} is not installed" for name in ("mlflow", "wandb")
    ]


def test_only_complete_lines_are_sent(tmp_path: Path) -> None:
    class Kept:
        def __init__(self) -> None:
            self.lines: list[tuple[int, dict[str, float]]] = []

        def log(self, values: dict[str, float], step: int) -> None:
            self.lines.append((step, values))

    kept, path = Kept(), tmp_path / "metrics.jsonl"
    first = json.dumps({"step": 1, "loss": 2.0, "note": "text", "score": None}) + "\n"
    path.write_text(first + '{"step": 2, "lo')
    position, step = trackers._send(kept, path, 0)
    assert kept.lines == [(1, {"loss": 2.0})]
    assert (position, step) == (len(first), 1)
    path.write_text(first + '{"step": 2, "loss": 1.0}\n')
    trackers._send(kept, path, position)
    assert kept.lines[1:] == [(2, {"loss": 1.0})]


class Kept:
    """Stands in for a tracker's class: keeps the steps that it is sent."""

    steps: list[int]

    def __init__(self, **_: Any) -> None:
        pass

    def start(self) -> None:
        Kept.steps = []

    def store_init_configuration(self, _: Any) -> None:
        pass

    def log(self, _: Any, step: int) -> None:
        self.steps.append(step)

    def finish(self) -> None:
        pass


def test_what_a_killed_run_had_not_sent_is_sent_when_it_is_resumed(
    tiny: Path, text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(accelerate.tracking.LOGGER_TYPE_TO_CLASS, "wandb", Kept)
    monkeypatch.setattr(trackers, "find_spec", lambda _: True)
    config = settings(tiny, text, tmp_path, track=["wandb"])

    def sent(last: int, *logged: int) -> list[int]:
        """Return what is sent when a run is resumed whose metrics end at a step, and then logs more."""
        (tmp_path / "metrics.jsonl").write_text("".join(f'{{"step": {n}, "loss": 1.0}}\n' for n in range(last + 1)))
        with trackers.tracked(tmp_path, config), (tmp_path / "metrics.jsonl").open("a") as stream:
            stream.writelines(f'{{"step": {n}, "loss": 1.0}}\n' for n in logged)
        return Kept.steps

    identity = tmp_path / "trackers.json"
    assert sent(5, 6) == [*range(7)]  # a tracker that has not followed the run
    assert json.loads(identity.read_text())["wandb sent"] == 6
    assert sent(8) == [7, 8]  # these were logged and saved before a kill
    assert sent(3) == []  # resumed from an older checkpoint, and killed before it logged anything
    assert sent(5, 6) == [4, 5, 6]
    identity.write_text('{"wandb": "x"}')  # of a version that did not say what it had sent
    assert sent(5, 6) == [6]
