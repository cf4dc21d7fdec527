from __future__ import annotations

from pathlib import Path

import pytest

from simcse_train.errors import SaveError
from simcse_train.runs.atomic import PARTIAL, write_folder, write_text


def test_a_folder_that_cannot_take_the_name_of_the_old_one_leaves_the_old_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = tmp_path / "folder"
    target.mkdir()
    (target / "x").write_text("old")
    original = Path.rename

    def write_new(folder: Path) -> None:
        (folder / "x").write_text("new")

    def rename(self: Path, new: Path) -> Path:
        if self.name.endswith(PARTIAL):
            raise OSError(5, "Input/output error")
        return original(self, new)

    monkeypatch.setattr(Path, "rename", rename)
    with pytest.raises(SaveError, match=f"{target} can't be written: Input/output error"):
        write_folder(target, write_new)
    assert (target / "x").read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["folder"]


def test_a_text_that_cannot_be_written_leaves_the_old_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "x.txt"
    write_text(path, "old")

    def replace(self: Path, new: Path) -> Path:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "replace", replace)
    with pytest.raises(SaveError, match="No space left"):
        write_text(path, "new")
    assert path.read_text() == "old"
    assert [found.name for found in tmp_path.iterdir()] == ["x.txt"]


def test_the_old_folder_of_a_killed_process_does_not_stand_in_the_way(tmp_path: Path) -> None:
    for name in ("folder", ".folder.replaced"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "x").write_text("old")
    write_folder(tmp_path / "folder", lambda folder: (folder / "x").write_text("new"))  # type: ignore[arg-type]
    assert (tmp_path / "folder" / "x").read_text() == "new"
    assert [path.name for path in tmp_path.iterdir()] == ["folder"]
