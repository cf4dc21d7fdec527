from __future__ import annotations

import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from safetensors.torch import load_file

from simcse_train import resume
from simcse_train.cli import main
from simcse_train.config_file import read_settings
from simcse_train.encoders.loading import load_encoder
from simcse_train.errors import InputError
from simcse_train.export import folder, onnx
from simcse_train.runs.checkpoint import load_state
from simcse_train.runs.folder import checkpoints
from simcse_train.search import embeddings
from simcse_train.training import prepare
from tests.conftest import EXAMPLES


def run(*arguments: object) -> int:
    """Call the command line in this process; return the exit status."""
    with pytest.MonkeyPatch.context() as patch, pytest.raises(SystemExit) as left:
        patch.setattr(sys, "argv", ["simcse-train", *map(str, arguments)])
        main()
    return int(left.value.code or 0)


def refused(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    """Return the one paragraph of a command that must end with status 2 and without a traceback."""
    capsys.readouterr()
    assert run(*arguments) == 2
    said = capsys.readouterr().err.split("\r")[-1].strip()
    assert "Traceback" not in said
    assert "\n\n" not in said
    *read, said = said.split("\n")  # how a file was understood is said as soon as it is read
    assert all(re.search(": .*(column|line|encoding|record)", line) for line in read)
    return said


def test_a_usage_error_names_the_help_of_its_command_and_says_how_a_text_is_given(
    capsys: pytest.CaptureFixture[str], text: Path
) -> None:
    assert refused(capsys, "encode", "starter").endswith("The options are listed by simcse-train encode --help.")
    assert refused(capsys, "--foo").endswith("No such option: --foo. The options are listed by simcse-train --help.")
    assert f"To train on it: simcse-train --data {text}" in refused(capsys, text)
    assert refused(capsys, "train", "--data", text) == "train is no command: simcse-train --data FILE does that."
    assert "No such command 'nothing'. The commands are listed by simcse-train --help." in refused(capsys, "nothing")
    assert "Did you mean 'encode'? The commands are" in refused(capsys, "encod", "a")


@pytest.mark.parametrize(
    ("option", "value"), [("--text-column", "subject"), ("--batch-size", -3), ("--resume", "x"), ("--config", "x")]
)
def test_an_option_of_a_training_before_another_command_is_refused(
    capsys: pytest.CaptureFixture[str], option: str, value: object
) -> None:
    said = refused(capsys, option, value, "encode", "starter", __file__, "x.npy")
    assert said.startswith(f"{option} stands before encode, where it is an option of a training. Put it after encode")


@pytest.mark.parametrize("command", [[], ["--resume"], ["report"], ["evaluate", "--data", __file__]])
def test_a_name_that_is_too_long_for_a_file_is_refused(capsys: pytest.CaptureFixture[str], command: list[str]) -> None:
    assert "this name is too long for a file" in refused(capsys, *command, "a" * 5000)


@pytest.fixture
def model(tiny: Path) -> Path:
    return tiny


def test_each_kind_of_wrong_input_is_refused_with_what_and_where(
    capsys: pytest.CaptureFixture[str], model: Path, text: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    files = {
        "empty.txt": b"",
        "one.txt": b"Only one.\n",
        "binary.txt": b"\x7fELF\0\0\0",
        "latin.txt": b"fine\ncaf\xe9\n",
        "table.csv": b"id,title,body\n1,a,b\n2,c,d\n",
    }
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)

    def with_data(name: str, *more: object) -> str:
        return refused(capsys, "--data", tmp_path / name, "--model", model, "--output", out, *more)

    assert "nowhere.txt: there is no such file" in with_data("nowhere.txt")
    assert "*.nothing: there is no such file, nor one that matches it as a pattern." in with_data("*.nothing")
    assert "empty.txt holds no sentence" in with_data("empty.txt")
    assert "one.txt holds a single sentence" in with_data("one.txt")
    assert "binary.txt, line 1 holds a NUL byte" in with_data("binary.txt")
    assert "latin.txt, line 2 is not valid UTF-8" in with_data("latin.txt")
    assert "'id', 'title', 'body'" in with_data("table.csv", "--text-column", "text")

    def with_text(*more: object) -> str:
        return refused(capsys, "--data", text, "--model", model, *more)

    assert "--temperature 0" in with_text("--output", out, "--temperature", "0")
    assert "--batch-size 1" in with_text("--output", out, "--batch-size", "1")
    assert "beyond the 64 positions" in with_text("--output", out, "--max-length", "65")
    (tmp_path / "c.yaml").write_text("temprature: 0.1\n")
    assert "'temperature'" in with_text("--output", out, "--config", tmp_path / "c.yaml")
    assert not out.exists()  # nothing was left behind by any of them
    out.mkdir()
    (out / "config.yaml").touch()
    assert "already holds a run" in with_text("--output", out)
    assert "can't be written" in with_text("--output", "/proc/nothing/out")
    assert "not a run" in refused(capsys, "--resume", tmp_path)
    assert "--seed" in with_text("--seed", "many")
    assert "No such option" in with_text("--temprature", "0.1")
    assert "--precision fp16 needs a CUDA GPU" in with_text(
        "--output", tmp_path / "x", "--precision", "fp16", "--device", "cpu"
    )


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_unreadable_text_is_refused(capsys: pytest.CaptureFixture[str], model: Path, tmp_path: Path) -> None:
    (tmp_path / "x.txt").write_text("one\ntwo\n")
    (tmp_path / "x.txt").chmod(0)
    assert "Permission denied" in refused(
        capsys, "--data", tmp_path / "x.txt", "--model", model, "--output", tmp_path / "out"
    )


def test_an_unknown_model_is_refused_at_once_without_a_network(tmp_path: Path, text: Path) -> None:
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "simcse_train",
            "--data",
            str(text),
            "--model",
            "nobody/no-such-model",
            "--output",
            str(tmp_path / "out"),
        ],
        env={**os.environ, "HF_ENDPOINT": "http://127.0.0.1:9", "HF_HUB_OFFLINE": "0"},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 2
    assert "hub can't be reached" in done.stderr
    assert "or use the bundled one, starter." in done.stderr


@pytest.mark.parametrize(
    ("arguments", "shown"),
    [
        (["--help"], "--temperature"),
        (["--data", "nowhere.txt"], "--data nowhere.txt: there is no such file"),
        (["--data", __file__, "--eval", "nowhere.tsv"], "--eval nowhere.tsv: there is no such file"),
        (["--data", __file__, "--pairs", "nowhere.tsv"], "--pairs nowhere.tsv: there is no such file"),
        (["inspect", "--data", "nowhere.txt"], "--data nowhere.txt: there is no such file"),
        (["encode", "starter", "nowhere.txt", "x.npy"], "INPUT nowhere.txt: there is no such file"),
        (["search", "starter", "--data", "nowhere.txt", "q"], "--data nowhere.txt: there is no such file"),
        (
            ["search", "starter", "--data", "-", "q"],
            "--data -: only a training's --data is read from standard input",
        ),
        (["compare", "starter", "x", "--data", "nowhere.txt"], "--data nowhere.txt: there is no such file"),
    ],
)
def test_help_and_a_wrong_path_do_not_wait_for_torch(arguments: list[str], shown: str) -> None:
    code = f"import sys; sys.argv = ['simcse-train', *{arguments!r}]\nfrom simcse_train.cli import main\n\
try:\n    main()\nfinally:\n    print(sorted({{'torch', 'transformers', 'numpy'}} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert shown in done.stdout + done.stderr
    assert done.stdout.endswith("[]\n")


def test_the_first_step_does_not_wait_for_what_only_clusters_and_labels_need(text: Path, tmp_path: Path) -> None:
    late = ["scipy.stats", "sklearn"]
    code = f"""
import sys
from simcse_train.cli import main
from simcse_train.training.loop import Trainer
first_step = Trainer.train_step
def step(*arguments):
    print([name for name in {late} if name in sys.modules])
    return first_step(*arguments)
Trainer.train_step = step
try:
    main()
finally:
    print([name for name in {late} if name in sys.modules])
"""
    command = [sys.executable, "-c", code, "--data", str(text), "--max-steps", "1", "--device", "cpu", "--output"]
    shown = [
        subprocess.run([*command, str(tmp_path / run)], capture_output=True, text=True, check=True).stdout.splitlines()
        for run in ("new", "again")
    ]
    assert shown[1] == ["[]", str(late)]  # of the text whose clusters before training are known


def test_an_empty_standard_input_is_named_and_leaves_nothing(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "simcse_train", "--data", "-", "--output", str(tmp_path / "run")]
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1].startswith("--data -: standard input is empty. Check the command")
    assert list(tmp_path.iterdir()) == []


def test_every_setting_has_an_option_and_every_option_a_help() -> None:
    import typer

    from simcse_train.cli.app import app
    from simcse_train.config import TrainConfig, option

    parameters = {o: p for p in typer.main.get_command(app).params for o in p.opts}
    assert {option(name) for name in TrainConfig.model_fields} <= set(parameters)
    assert all(getattr(p, "help", None) for p in parameters.values())


def test_the_whole_life_of_an_encoder(
    capsys: pytest.CaptureFixture[str], model: Path, text: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    pairs = EXAMPLES / "pairs.tsv"
    common = ("--batch-size", 8, "--save-every", 4)
    assert run("--data", text, "--model", model, "--output", folder, "--max-steps", 4, "--eval", pairs, *common) == 0
    shown = capsys.readouterr().err
    assert "120 lines, 0 empty" in shown
    assert "before training  score" in shown
    assert "after training   score" in shown
    assert run("--resume", folder, "--max-steps", 6) == 0
    assert run("export", folder, tmp_path / "out", "--checkpoint", "last") == 0
    capsys.readouterr()
    scores = []
    for encoder in (tmp_path / "out", folder / "checkpoints" / "step-00000006", folder):
        assert run("evaluate", encoder, "--data", pairs, "--json") == 0
        scores.append(json.loads(capsys.readouterr().out)["pairs"])
    assert scores[0] == scores[1]
    assert scores[0]["pairs"] == 483
    assert run("evaluate", tmp_path / "out", "--data", pairs) == 0
    assert "Spearman x 100" in capsys.readouterr().out
    (tmp_path / "in.txt").write_text("a man\n\nthe cat\n")
    assert run("encode", tmp_path / "out", tmp_path / "in.txt", tmp_path / "rows.npy") == 0
    rows = np.load(tmp_path / "rows.npy")
    assert rows.shape == (3, 32)
    assert rows.dtype == np.float32
    assert np.allclose(np.linalg.norm(rows, axis=1), 1, atol=1e-6)
    assert run("encode", tmp_path / "out", tmp_path / "in.txt", tmp_path / "raw.npy", "--no-normalize") == 0
    assert not np.allclose(np.linalg.norm(np.load(tmp_path / "raw.npy"), axis=1), 1)


def command(text: Path, model: Path, output: Path) -> list[str]:
    files = ["--data", str(text), "--model", str(model), "--output", str(output)]
    return [sys.executable, "-m", "simcse_train", *files, "--batch-size", "8", "--epochs", "15", "--log-every", "1"]


@pytest.fixture(scope="module")
def whole(text: Path, tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that was never disturbed."""
    folder = tmp_path_factory.mktemp("runs") / "whole"
    subprocess.run(command(text, tiny, folder), check=True, capture_output=True)
    return folder


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP])
def test_a_signal_saves_and_the_resumed_run_ends_with_the_same_bits(
    number: signal.Signals, whole: Path, text: Path, tiny: Path, tmp_path: Path
) -> None:
    # Under nohup a child would inherit that a hangup is ignored.
    with subprocess.Popen(
        command(text, tiny, tmp_path / "stopped"),
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(number, signal.SIG_DFL),
    ) as process:
        log = tmp_path / "stopped" / "metrics.jsonl"
        while process.poll() is None and (not log.exists() or log.read_text().count("loss") < 5):
            time.sleep(0.01)
        process.send_signal(number)
        assert process.stderr is not None
        said = process.stderr.read()
    assert process.returncode == 128 + number
    assert said.strip().endswith(f"To continue: simcse-train --resume {tmp_path / 'stopped'}")
    subprocess.run(
        [sys.executable, "-m", "simcse_train", "--resume", str(tmp_path / "stopped")], check=True, capture_output=True
    )
    weights = [load_file(folder / "encoder" / "model.safetensors") for folder in (whole, tmp_path / "stopped")]
    assert all(weights[0][key].equal(weights[1][key]) for key in weights[0])


def test_standard_input_is_learned_from_and_kept_for_resuming(
    text: Path, model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = [
        sys.executable,
        "-m",
        "simcse_train",
        "--data",
        "-",
        "--model",
        str(model),
        "--output",
        str(tmp_path / "run"),
    ]
    with text.open("rb") as stream:
        subprocess.run(
            [*command, "--batch-size", "8", "--max-steps", "2"], stdin=stream, check=True, capture_output=True
        )
    assert (tmp_path / "run" / "stdin.txt").read_bytes() == text.read_bytes()
    assert run("--resume", tmp_path / "run", "--max-steps", 3) == 0
    assert run("--resume", tmp_path / "run", "--max-steps", 4, "--data", "-") == 0  # the copy of it that the run keeps
    assert read_settings(tmp_path / "run" / "config.yaml")["data"] == [str(tmp_path / "run" / "stdin.txt")]
    named = ("--model", model, "--output", tmp_path / "named", "--batch-size", 8)
    assert run("--data", text, *named, "--max-steps", 1) == 0
    assert "the run did not read standard input" in refused(capsys, "--resume", tmp_path / "named", "--data", "-")


def test_the_settings_that_began_a_run_may_be_given_again_to_continue_it(
    capsys: pytest.CaptureFixture[str], model: Path, text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    left_open = ("objective", "precision", "device", "pooling", "projection", "kernels")
    given = f"data: {text.name}\nmodel: encoder\noutput: run\nbatch_size: 8\nlearning_rate: 3e-5\nsave_every: 2\n"
    given += "".join(f"{name}: auto\n" for name in left_open) + "epochs:\n"
    (tmp_path / text.name).write_bytes(text.read_bytes())
    shutil.copytree(model, tmp_path / "encoder")
    Path("c.yaml").write_text(given)
    assert run("--config", "c.yaml", "--max-steps", 2) == 0
    before = read_settings(Path("run/config.yaml"))
    assert run("--config", "c.yaml", "--resume", "run", "--max-steps", 4) == 0
    after = read_settings(Path("run/config.yaml"))
    assert after == {**before, "max_steps": 4, "kernels": "off"}  # the encoder is too small for them
    Path("c.yaml").write_text(given + "max_steps: 2\n")  # as the run was begun, before it was made longer
    assert run("--config", "c.yaml", "--resume", "run") == 0
    assert read_settings(Path("run/config.yaml")) == after
    Path("c.yaml").write_text(given)
    assert run("--config", "c.yaml", "--resume", "run", "--max-steps", 6) == 0
    for line, message in (
        ("learning_rate: 1e-5", "--learning-rate 1e-05 differs from the run's own 3e-05"),
        ("model: starter", "--model starter differs from the run's own"),
        ("output: elsewhere", "--output elsewhere differs from the run's own"),
        ("kernels: compile", "--kernels compile differs from the run's own"),
        ("colour: red", "There is no setting 'colour'"),
    ):
        name = line.partition(":")[0]
        rest = [old for old in given.splitlines() if not old.startswith(f"{name}:")]
        Path("c.yaml").write_text("\n".join([*rest, line]))
        assert message in refused(capsys, "--config", "c.yaml", "--resume", "run")
    with pytest.raises(InputError, match="There is no setting 'colour'"):
        resume("run", {"colour": "red"})


def test_an_option_of_the_command_line_wins_over_the_file_of_settings(model: Path, text: Path, tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text(f"data: {text}\nmodel: {model}\nbatch_size: 8\nmax_steps: 1\nseed: 7\n")
    assert run("--config", tmp_path / "c.yaml", "--batch-size", 4, "--output", tmp_path / "run") == 0
    found = read_settings(tmp_path / "run" / "config.yaml")
    assert (found["batch_size"], found["max_steps"], found["seed"]) == (4, 1, 7)


def test_standard_input_is_encoded(model: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "simcse_train", "encode", str(model), "-", str(tmp_path / "rows.npy")]
    subprocess.run(command, input=b"a man\n\nthe cat\n", check=True, capture_output=True)
    assert np.array_equal(np.load(tmp_path / "rows.npy"), load_encoder(model).encode(["a man", "", "the cat"]))


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_leaves_nothing_half_encoded(number: signal.Signals, model: Path, tmp_path: Path) -> None:
    (tmp_path / "lines.txt").write_text("".join(f"a man with {number} cats\n" for number in range(500_000)))
    paths = [str(tmp_path / name) for name in ("lines.txt", "out/rows.npy")]
    (tmp_path / "out").mkdir()
    with subprocess.Popen(
        [sys.executable, "-m", "simcse_train", "encode", str(model), *paths],
        stderr=subprocess.PIPE,
        preexec_fn=lambda: signal.signal(number, signal.SIG_DFL),
    ) as process:
        while process.poll() is None and not list((tmp_path / "out").iterdir()):
            time.sleep(0.01)
        process.send_signal(number)
        said = process.communicate()[1].decode()
    assert process.returncode == 128 + number
    assert said.split("\r")[-1].strip().endswith("Stopped.")
    assert not list((tmp_path / "out").iterdir())


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGUSR1])
@pytest.mark.parametrize("command", ["export", "onnx", "search"])
def test_a_signal_leaves_nothing_half_exported_nor_half_embedded(
    command: str,
    number: signal.Signals,
    model: Path,
    text: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    at = {"export": (folder, "load_encoder"), "onnx": (onnx, "_write_graph"), "search": (embeddings, "embed_rows")}
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    if command == "search":
        given: tuple[object, ...] = ("search", model, "a man", "--data", text)
    elif command == "onnx":
        given = ("export", model, tmp_path / "out", "--format", "onnx")
    else:
        settings = ("--model", model, "--batch-size", 8, "--max-steps", 1)
        assert run("--data", text, *settings, "--output", tmp_path / "run") == 0
        given = ("export", tmp_path / "run", tmp_path / "out")
    with monkeypatch.context() as patch:
        patch.setattr(*at[command], lambda *_, **__: signal.raise_signal(number))
        assert run(*given) == 128 + number
    assert capsys.readouterr().err.split("\r")[-1].strip().endswith("Stopped.")
    left = [path for path in tmp_path.rglob("*") if path.name.endswith(".partial") or "embeddings-" in path.name]
    assert [path for path in left if not path.name.endswith(".lock")] == []
    assert not (tmp_path / "out").exists()
    assert run(*given) == 0


def test_standard_input_that_was_read_is_not_lost_with_a_signal(
    text: Path, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    given = ("--model", model, "--output", tmp_path / "run", "--batch-size", 8, "--max-steps", 2)
    with monkeypatch.context() as patch, text.open("rb") as stream:
        patch.setattr(sys, "stdin", io.TextIOWrapper(stream))
        patch.setattr(prepare, "open_texts", lambda *_: signal.raise_signal(signal.SIGTERM))
        assert run("--data", "-", *given) == 143
    assert "To continue: simcse-train --resume" in capsys.readouterr().err
    assert run("--resume", tmp_path / "run") == 0
    assert run("--data", text, *given[:2], "--output", tmp_path / "whole", *given[4:]) == 0
    weights = [load_file(tmp_path / name / "encoder" / "model.safetensors") for name in ("run", "whole")]
    assert all(weights[0][key].equal(weights[1][key]) for key in weights[0])


@pytest.mark.parametrize("is_own", [True, False])
def test_a_run_that_never_began_leaves_the_folders_that_were_there_before(
    capsys: pytest.CaptureFixture[str], model: Path, tmp_path: Path, is_own: bool
) -> None:
    (tmp_path / "blank.txt").write_text("\n\n")
    if not is_own:
        (tmp_path / "run").mkdir()
    refused(capsys, "--data", tmp_path / "blank.txt", "--model", model, "--output", tmp_path / "run")
    assert (tmp_path / "run").exists() is not is_own
    assert not list(tmp_path.glob("run/*")) and not list(tmp_path.glob("run/.*"))


def test_a_run_is_called_by_its_folder_wherever_the_user_is(
    text: Path, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "mine").mkdir()
    monkeypatch.chdir(tmp_path / "mine")
    given = ("--data", text, "--model", model, "--batch-size", 8, "--save-every", 1)
    assert run(*given, "--output", ".", "--max-steps", 2) == 0
    card = Path("encoder/README.md")
    assert "# mine" in card.read_text()
    assert run("--resume", ".", "--max-steps", 3) == 0
    assert "# mine" in card.read_text()
    assert "mine" in Path("report.html").read_text().partition("</title>")[0]
    monkeypatch.chdir("checkpoints")
    assert run("--resume", "..", "--max-steps", 4) == 0
    assert "# mine" in (tmp_path / "mine" / card).read_text()
    monkeypatch.chdir("step-00000004")
    assert run("--resume", "../step-00000003", "--max-steps", 4) == 0
    # Links, to a checkpoint or in place of the folder of all of them, lead to the same run.
    mine = tmp_path / "mine"
    (tmp_path / "latest").symlink_to(mine / "checkpoints" / "step-00000004")
    assert run("--resume", tmp_path / "latest", "--max-steps", 5) == 0
    (mine / "checkpoints").rename(tmp_path / "elsewhere")
    (mine / "checkpoints").symlink_to(tmp_path / "elsewhere")
    assert run("--resume", mine / "checkpoints" / "step-00000005", "--max-steps", 6) == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["elsewhere", "latest", "mine"]
    assert load_state(checkpoints(mine)[-1]).step == 6


def test_a_folder_beside_the_checkpoints_that_is_none_stays(
    text: Path, model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = ("--data", text, "--model", model, "--batch-size", 8, "--save-every", 1, "--keep", 1)
    assert run(*given, "--output", tmp_path / "run", "--max-steps", 2) == 0
    notes = tmp_path / "run" / "checkpoints" / "step-00000001-notes"
    notes.mkdir()
    assert run("--resume", tmp_path / "run", "--max-steps", 4) == 0
    assert notes.is_dir()
    assert "notes" not in capsys.readouterr().err


@pytest.mark.parametrize("command", ["--resume {}", "report {}", "export {} out", "evaluate {} --data x"])
def test_a_folder_that_may_not_be_entered_is_named(command: str, model: Path, tmp_path: Path) -> None:
    closed = tmp_path / "closed"
    closed.mkdir()
    closed.chmod(0)
    without = ["setpriv", "--bounding-set=-dac_override,-dac_read_search", "--inh-caps=-all"]
    drop = without if os.geteuid() == 0 else []  # root may enter every folder
    if drop and shutil.which("setpriv") is None:
        pytest.skip("root, and no setpriv to give up its rights")
    arguments = command.format(closed / "run").replace("--data x", f"--data {EXAMPLES / 'pairs.tsv'}").split()
    done = subprocess.run([*drop, sys.executable, "-m", "simcse_train", *arguments], capture_output=True, text=True)
    assert done.stderr.startswith(f"{closed / 'run'}")
    assert done.stderr.endswith(": Permission denied. Check the path and its permissions.\n")
    assert "\n" not in done.stderr.strip()
    assert done.returncode == 2


def test_what_a_launcher_left_in_the_environment_is_named(model: Path, tmp_path: Path) -> None:
    (tmp_path / "x.txt").write_text("a man\n")
    command = [sys.executable, "-m", "simcse_train", "encode", str(model), str(tmp_path / "x.txt"), "x.npy"]
    left = {name: value for name, value in os.environ.items() if not name.startswith("MASTER_")}
    done = subprocess.run(command, env=left | {"RANK": "0", "WORLD_SIZE": "2"}, capture_output=True, text=True)
    assert "without MASTER_ADDR and MASTER_PORT. Start with torchrun, or unset them" in done.stderr
    assert "Traceback" not in done.stderr
    assert done.returncode == 2


@pytest.mark.parametrize("option", ["--answers", "--write-eval", "--write-pairs"])
def test_a_comparison_that_could_not_be_written_asks_nothing(
    option: str, model: Path, text: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = ("compare", model, "starter", "--data", text, option, tmp_path / "none" / "x.jsonl")
    assert f"{option} {tmp_path / 'none' / 'x.jsonl'}: there is no folder" in refused(capsys, *asked)
