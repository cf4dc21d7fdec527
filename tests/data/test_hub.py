"""Texts on the hub, read from a small server that answers as the hub does."""

from __future__ import annotations

import hashlib
import http.server
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import pytest
from huggingface_hub import HfApi, parse_hf_uri
from huggingface_hub.utils._paths import filter_repo_objects

from simcse_train.config import make_config
from simcse_train.config_file import read_settings
from simcse_train.data.hub import _parse, download, select
from simcse_train.errors import InputError

REVISION = "a" * 40
LINES = [f"a man plays the guitar {number}" for number in range(20)]
FILES = {
    "README.md": "# A data set\n",
    "data/train-0.txt": "\n".join(LINES[:12]) + "\n",
    "data/train-1.txt": "\n".join(LINES[12:]) + "\n",
    "data/test-0.txt": "a sentence of the test part\n",
}


class Hub(http.server.BaseHTTPRequestHandler):
    """The requests with which a data set is described and downloaded."""

    def do_HEAD(self) -> None:
        self.answer(with_body=False)

    def do_GET(self) -> None:
        self.answer(with_body=True)

    def answer(self, *, with_body: bool) -> None:
        path = self.path.partition("?")[0]
        if path in {f"/api/datasets/someone/tiny{end}" for end in ("", "/revision/main", f"/revision/{REVISION}")}:
            siblings = [{"rfilename": name} for name in FILES]
            self.send(json.dumps({"id": "someone/tiny", "sha": REVISION, "siblings": siblings}), with_body)
        elif path.startswith("/api/datasets/someone/tiny/tree/"):
            tree = [{"type": "file", "path": n, "size": len(c), "oid": digest(c)} for n, c in FILES.items()]
            self.send(json.dumps(tree), with_body)
        elif path.startswith("/datasets/someone/tiny/resolve/"):
            content = FILES[path.split("/", 6)[6]]
            self.send(content, with_body, {"ETag": f'"{digest(content)}"', "X-Repo-Commit": REVISION})
        else:
            self.send("", with_body, {"X-Error-Code": "RepoNotFound"}, status=404)

    def send(self, content: str, with_body: bool, headers: dict[str, str] | None = None, status: int = 200) -> None:
        self.send_response(status)
        for name, value in {**(headers or {}), "Content-Length": str(len(content))}.items():
            self.send_header(name, value)
        self.end_headers()
        if with_body:
            self.wfile.write(content.encode())

    def log_message(self, *arguments: object) -> None:
        """Print nothing."""


def digest(content: str) -> str:
    return hashlib.sha1(content.encode()).hexdigest()


@contextmanager
def hub() -> Iterator[str]:
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Hub) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()


def simcse_train(endpoint: str, home: Path, *arguments: object) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "HF_ENDPOINT": endpoint, "HF_HOME": str(home), "HF_HUB_OFFLINE": "0"}
    command = [sys.executable, "-m", "simcse_train", *map(str, arguments)]
    return subprocess.run(command, env=environment, capture_output=True, text=True)


def test_a_text_on_the_hub_is_trained_on_and_the_run_goes_on_without_it(tiny: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    settings = ["--model", tiny, "--output", run, "--batch-size", 4, "--precision", "fp32", "--device", "cpu"]
    with hub() as endpoint:
        first = simcse_train(endpoint, tmp_path / "home", "--data", "hf://datasets/someone/tiny", *settings)
        assert first.returncode == 0, first.stderr
        assert "hf://datasets/someone/tiny: 2 files, such as data/train-0.txt." in first.stdout + first.stderr
        assert (first.stdout + first.stderr).count(": 2 files, such as ") == 1
        assert "Text: 20 lines" in first.stdout + first.stderr  # the test part is left out
        for name, message in (
            ("hf://datasets/someone/none", "--data hf://datasets/someone/none: the hub has no such data set, or only "),
            (
                "hf://datasets/someone/tiny/*.csv",
                "the data set someone/tiny holds no file that matches *.csv. Give hf:/",
            ),
            (
                "hf://someone/tiny",
                "--data hf://someone/tiny is not how a text on the Hugging Face hub is named. Give hf",
            ),
            ("someone/tiny", "no such file, and a text on the Hugging Face hub is named hf://datasets/someone/tiny."),
        ):
            refused = simcse_train(endpoint, tmp_path / "home", "--data", name)
            assert refused.returncode == 2
            assert message in refused.stderr
        beside = ["--data", __file__, "--eval", "hf://datasets/someone/tiny"]
        for arguments in (beside, ["encode", tiny, "hf://datasets/someone/tiny", tmp_path / "x.npy"]):
            refused = simcse_train(endpoint, tmp_path / "home", *arguments)
            assert refused.returncode == 2
            assert "hf://datasets/someone/tiny: only --data takes a text of the hub. Download it" in refused.stderr
    # The settings name the revision, so that the run stays one of the same text when the data set changes.
    pinned = f"hf://datasets/someone/tiny@{REVISION}"
    assert make_config(read_settings(run / "config.yaml")).data == [pinned]
    assert f"`{pinned}`: 20 lines" in (run / "encoder" / "README.md").read_text(encoding="utf-8")
    named_again = ("--data", "hf://datasets/someone/tiny@main")
    longer = simcse_train(endpoint, tmp_path / "home", "--resume", run, "--epochs", 2, *named_again)
    assert longer.returncode == 0, longer.stderr
    assert make_config(read_settings(run / "config.yaml")).data == [pinned]
    assert "the hub can't be asked (" in longer.stdout + longer.stderr
    assert "Using what was downloaded before." in longer.stdout + longer.stderr
    unpinned = simcse_train(
        endpoint, tmp_path / "home", "--data", "hf://datasets/someone/tiny", *settings[:2], "--max-steps", 1
    )
    assert unpinned.returncode == 0, unpinned.stderr
    never = simcse_train(endpoint, tmp_path / "elsewhere", "--data", "hf://datasets/someone/tiny")
    assert never.returncode == 2
    assert (
        "this text was not downloaded before. Go online, or download it elsewhere and name the folder." in never.stderr
    )


@pytest.mark.parametrize(
    ("names", "pattern", "chosen"),
    [
        (["README.md", "b.csv", "a.txt", ".hidden/c.txt", "x.py"], None, ["a.txt", "b.csv"]),
        (["data/train-0.parquet", "data/test-0.parquet"], None, ["data/train-0.parquet"]),
        (["train/a.jsonl.gz", "validation/a.jsonl.gz"], None, ["train/a.jsonl.gz"]),
        (["train.csv", "test.csv"], "test*", ["test.csv"]),
        (["en/a.txt", "de/a.txt"], "de/*", ["de/a.txt"]),
        (["README.md"], None, []),
        (["train-00000-of-00001.parquet", "trained.json"], None, ["train-00000-of-00001.parquet"]),
        (["train.jsonl", "training_notes.txt", "trainer.csv"], None, ["train.jsonl"]),
        (["train1.csv", "train_2.csv", "test.csv"], None, ["train1.csv", "train_2.csv"]),
        (["en/train/x.parquet", "en/test/x.parquet"], None, ["en/train/x.parquet"]),
        (["training.csv", "test.csv"], None, ["training.csv"]),
        (["training/a.txt", "testing/a.txt"], None, ["training/a.txt"]),
        (["a.csv", "dataset_infos.json", "config.json", "x/dummy_data.zip"], None, ["a.csv"]),
        (["a.csv", "x/b.csv", "x/y/c.csv", "x/y/d.txt"], "**/*.csv", ["a.csv", "x/b.csv", "x/y/c.csv"]),
        (["x/b.csv", "x/y/c.csv", "y/d.csv"], "x/**/*.csv", ["x/b.csv", "x/y/c.csv"]),
        (["my_dataset_train.csv", "b.csv"], None, ["b.csv", "my_dataset_train.csv"]),
    ],
)
def test_the_training_part_is_read_unless_a_pattern_names_other_files(
    names: list[str], pattern: str | None, chosen: list[str]
) -> None:
    assert select(names, pattern) == chosen


@pytest.mark.parametrize(
    ("after_name", "revision", "pattern"),
    [
        ("", None, None),
        ("/data/*.csv", None, "data/*.csv"),
        ("/a@b.csv", None, "a@b.csv"),
        ("@v1", "v1", None),
        ("@v1/data/a@b.csv", "v1", "data/a@b.csv"),
        ("@refs/convert/parquet", "refs/convert/parquet", None),
        ("@refs/convert/parquet/default/train/*.parquet", "refs/convert/parquet", "default/train/*.parquet"),
        ("@refs%2Fconvert%2Fparquet/default/*", "refs/convert/parquet", "default/*"),
        ("@refs/pr/12/a.txt", "refs/pr/12", "a.txt"),
        ("@feature%2Fnew/a.txt", "feature/new", "a.txt"),
        ("@refs/other", "refs", "other"),
    ],
)
def test_a_revision_is_read_as_the_hubs_own_file_system_reads_it(
    after_name: str, revision: str | None, pattern: str | None
) -> None:
    entry = f"hf://datasets/someone/tiny{after_name}"
    assert _parse(entry) == ("someone/tiny", revision, pattern)
    parsed = parse_hf_uri(entry)
    assert (parsed.id, parsed.revision, parsed.path_in_repo or None) == ("someone/tiny", revision, pattern)


def test_a_name_with_the_marks_of_a_pattern_is_downloaded_and_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = ["a[1].txt", "a1.txt"]
    monkeypatch.setattr(
        HfApi,
        "dataset_info",
        lambda self, name, **settings: SimpleNamespace(siblings=[SimpleNamespace(rfilename=n) for n in names]),
    )

    def snapshot_download(name: str, *, allow_patterns: list[str], **settings: object) -> str:
        for wanted in filter_repo_objects(names, allow_patterns=allow_patterns):
            (tmp_path / wanted).write_text("text\n")
        return str(tmp_path)

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot_download)
    assert download("hf://datasets/someone/marks/a[[]1*").files == (tmp_path / "a[1].txt",)
    assert [file.name for file in tmp_path.iterdir()] == ["a[1].txt"]


def test_the_hub_is_asked_once_for_a_text_and_for_its_lasting_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    asked: list[str] = []

    def dataset_info(self: HfApi, name: str, **settings: object) -> SimpleNamespace:
        asked.append(name)
        return SimpleNamespace(siblings=[SimpleNamespace(rfilename="a.txt")])

    monkeypatch.setattr(HfApi, "dataset_info", dataset_info)
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda name, **settings: str(tmp_path / REVISION))
    with caplog.at_level("INFO"):
        found = download("hf://datasets/someone/asked-once", "--data")
        assert download("hf://datasets/someone/asked-once") is found
        assert download(found.name) is found
    assert found.name == f"hf://datasets/someone/asked-once@{REVISION}"
    assert asked == ["someone/asked-once"]
    assert caplog.messages == ["hf://datasets/someone/asked-once: a.txt."]
    with pytest.raises(InputError, match="^--eval hf://datasets/someone/asked-once: only --data takes a text of the"):
        download("hf://datasets/someone/asked-once", "--eval")
