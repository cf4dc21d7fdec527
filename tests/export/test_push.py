"""Uploads, to a hub that answers on this machine as far as an upload needs it."""

from __future__ import annotations

import base64
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import constants

from simcse_train import TrainConfig, train
from tests.cli.test_commands import refused, run


class Hub(ThreadingHTTPServer):
    """Keeps the files of uploads in memory; `status` is what it answers to a login."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Answers)
        self.files: dict[str, bytes] = {}
        self.created: list[dict[str, Any]] = []
        self.status = self.commit_status = 200


class Answers(BaseHTTPRequestHandler):
    server: Hub

    def do_GET(self) -> None:
        self._answer(self.server.status, {"name": "someone", "type": "user", "auth": {"type": "access_token"}})

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        if self.path.endswith("/repos/create"):
            self.server.created.append(json.loads(body))
            self._answer(200, {"url": f"http://127.0.0.1:{self.server.server_port}/someone/mine"})
        elif "/preupload/" in self.path:
            files = [
                {"path": file["path"], "uploadMode": "regular", "shouldIgnore": False}
                for file in json.loads(body)["files"]
            ]
            self._answer(200, {"files": files})
        elif "/commit/" in self.path:
            for line in map(json.loads, body.splitlines()):
                if line["key"] == "file":
                    self.server.files[line["value"]["path"]] = base64.b64decode(line["value"]["content"])
            self._answer(self.server.commit_status, {"commitUrl": f"{self.path}/x", "commitOid": "0" * 40})
        else:
            self._answer(200, {})

    def _answer(self, status: int, content: dict[str, Any]) -> None:
        body = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """A hub on this machine, which the client asks, with a login."""
    server = Hub()
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{server.server_port}")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setenv("HF_TOKEN", "hf_test")
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture(scope="module")
def finished(tiny: Path, text: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pushed") / "run"
    return train(TrainConfig(data=[str(text)], model=str(tiny), output=str(folder), batch_size=16, max_steps=2)).folder


def test_an_export_is_uploaded_as_a_private_model(
    finished: Path, tmp_path: Path, hub: Hub, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert run("export", finished, out, "--checkpoint", "last", "--push", "someone/mine") == 0
    assert f"Uploaded {out} to http://127.0.0.1:{hub.server_port}/someone/mine." in capsys.readouterr().out
    assert [(c["name"], c["organization"], c["visibility"]) for c in hub.created] == [("mine", "someone", "private")]
    written = {str(p.relative_to(out)): p.read_bytes() for p in out.rglob("*") if p.is_file()}
    assert "README.md" in written
    assert hub.files == written


def test_a_failed_upload_leaves_the_folder_and_says_how_to_repeat_it(
    finished: Path, tmp_path: Path, hub: Hub, capsys: pytest.CaptureFixture[str]
) -> None:
    hub.commit_status = 403
    out = tmp_path / "out"
    assert run("export", finished, out, "--checkpoint", "last", "--push", "someone/mine") == 1
    said = capsys.readouterr().err
    assert "is complete, but it could not be uploaded as someone/mine" in said
    assert said.strip().endswith(f"To try again: hf upload someone/mine {out}.")
    assert (out / "model.safetensors").is_file()


def test_what_prevents_an_upload_is_said_before_anything_is_written(
    finished: Path, tmp_path: Path, hub: Hub, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    command = ("export", finished, tmp_path / "out", "--checkpoint", "last", "--push")
    said = refused(capsys, *command, "a/b/c")
    assert "--push a/b/c is no name of a model. Give USER/NAME." in said
    hub.status = 401
    assert "the hub refused your login" in refused(capsys, *command, "someone/mine")
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    said = refused(capsys, *command, "someone/mine")
    assert "--push someone/mine: the hub can't be reached" in said
    assert "hf upload someone/mine FOLDER" in said
    monkeypatch.setenv("HF_TOKEN", "")
    said = refused(capsys, *command, "someone/mine")
    assert "you are not logged in to the hub. Run hf auth login first." in said
    assert not (tmp_path / "out").exists()
