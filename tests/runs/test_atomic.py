from __future__ import annotations

from pathlib import Path

import pytest

from simcse_train.errors import SaveError
from simcse_train.runs.atomic import PARTIAL, InUse, remove_leftovers, replacing, write_folder, write_text


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


def test_what_another_process_is_writing_is_left_to_it(tmp_path: Path) -> None:
    target = tmp_path / "folder"

    def write(folder: Path) -> None:
        (folder / "x").write_text("first")
        for own in (lambda _: None, write):  # as a second process would, at the same time
            with pytest.raises(InUse, match=f"Another process is writing {target}"):
                write_folder(target, own)
        remove_leftovers(tmp_path)

    write_folder(target, write)
    assert (target / "x").read_text() == "first"
    with replacing(tmp_path / "file") as stream:
        stream.write(b"first")
        with pytest.raises(InUse, match="Another process is writing"), replacing(tmp_path / "file"):
            pass
        remove_leftovers(tmp_path)
    assert (tmp_path / "file").read_text() == "first"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "folder"]


def test_what_a_killed_process_left_is_no_part_of_what_is_written(tmp_path: Path) -> None:
    (tmp_path / ".folder.partial" / "below").mkdir(parents=True)
    (tmp_path / ".folder.partial" / "y").write_text("old")
    (tmp_path / ".x.txt.partial").write_text("a longer text than the new one")
    write_folder(tmp_path / "folder", lambda folder: (folder / "x").write_text("new"))  # type: ignore[arg-type]
    write_text(tmp_path / "x.txt", "new")
    assert [path.name for path in (tmp_path / "folder").iterdir()] == ["x"]
    assert (tmp_path / "x.txt").read_text() == "new"


def test_what_another_process_has_written_meanwhile_is_not_replaced(tmp_path: Path) -> None:
    target = tmp_path / "folder"

    def write(folder: Path) -> None:
        target.mkdir()
        (target / "x").write_text("first")

    with pytest.raises(InUse, match="was written by another process meanwhile"):
        write_folder(target, write, replaces=False)
    assert (target / "x").read_text() == "first"
    assert [path.name for path in tmp_path.iterdir()] == ["folder"]
