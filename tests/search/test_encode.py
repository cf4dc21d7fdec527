from __future__ import annotations

import resource
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from safetensors.numpy import load_file

from simcse_train import distributed
from simcse_train.encoders.compiled.build import CannotCompile
from simcse_train.encoders.compiled.library import library
from simcse_train.encoders.loading import load_encoder
from simcse_train.errors import InputError, SaveError
from simcse_train.search import encode
from simcse_train.search.encode import encode_file
from tests.launch import run

SENTENCES = ["a man runs", "", "the cat plays", "a dog", "the red hill"]


def read(path: Path) -> Any:
    if path.suffix == ".npy":
        return np.load(path)
    if path.suffix == ".safetensors":
        return load_file(path)["embeddings"]
    table = pq.read_table(path)
    assert table["text"].to_pylist() == SENTENCES
    return np.array(table["embedding"].to_pylist(), dtype=np.float32)


@pytest.mark.parametrize("ending", [".npy", ".safetensors", ".parquet"])
def test_every_format_holds_a_row_per_record_whatever_the_chunks(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ending: str
) -> None:
    encoder = load_encoder(tiny)
    (tmp_path / "in.csv").write_text("id,text\n" + "".join(f"{i},{s}\n" for i, s in enumerate(SENTENCES)))
    monkeypatch.setattr(encode, "CHUNK", 2)
    target = tmp_path / f"rows{ending}"
    assert encode_file(encoder, str(tmp_path / "in.csv"), target, text_column="text") == (5, 32)
    rows = read(target)
    assert rows.dtype == np.float32
    assert np.allclose(rows, encoder.encode(SENTENCES), atol=1e-6)


def test_nothing_is_left_of_an_output_that_fails(tiny: Path, tmp_path: Path) -> None:
    encoder = load_encoder(tiny)
    (tmp_path / "in.txt").write_bytes(b"fine\n" * 9000 + b"caf\xe9\n")
    with pytest.raises(InputError, match="line 9001 is not valid UTF-8"):
        encode_file(encoder, str(tmp_path / "in.txt"), tmp_path / "rows.npy")
    assert [path.name for path in tmp_path.iterdir()] == ["in.txt"]
    with pytest.raises(InputError, match="must end in .npy, .safetensors, .parquet"):
        encode_file(encoder, str(tmp_path / "in.txt"), tmp_path / "rows.txt")
    (tmp_path / "in.txt").write_text("fine\n")
    with pytest.raises(InputError, match="can't be written"):
        encode_file(encoder, str(tmp_path / "in.txt"), tmp_path / "no" / "rows.npy")
    (tmp_path / "empty.txt").touch()
    with pytest.raises(InputError, match="is empty"):
        encode_file(encoder, str(tmp_path / "empty.txt"), tmp_path / "rows.npy")


def test_a_column_of_a_table_is_encoded_row_by_row(tiny: Path, tmp_path: Path) -> None:
    encoder = load_encoder(tiny)
    (tmp_path / "x.csv").write_text("title;body\na cat;a dog runs\nthe man;\n")
    assert encode_file(encoder, str(tmp_path / "x.csv"), tmp_path / "x.npy", text_column="body") == (2, 32)
    np.testing.assert_allclose(np.load(tmp_path / "x.npy"), encoder.encode(["a dog runs", ""]), atol=1e-6)
    with pytest.raises(InputError, match="^INPUT .*2 columns of text.*--text-column"):
        encode_file(encoder, str(tmp_path / "x.csv"), tmp_path / "x.npy")


def test_an_input_without_any_text_is_refused_by_its_argument(tiny: Path, tmp_path: Path) -> None:
    encoder = load_encoder(tiny)
    (tmp_path / "x.txt").write_text("\n \n")
    with pytest.raises(InputError, match="^INPUT .*x.txt has 2 records, all without text"):
        encode_file(encoder, str(tmp_path / "x.txt"), tmp_path / "x.npy")
    with pytest.raises(InputError, match="^INPUT .*--text-column 'body'"):
        encode_file(encoder, str(tmp_path / "x.txt"), tmp_path / "x.npy", text_column="body")
    assert not (tmp_path / "x.npy").exists()


def encode_together(tiny: Path, source: Path, target: Path) -> None:
    encode.CHUNK = 2
    with distributed.connected(str):
        assert encode_file(load_encoder(tiny), str(source), target) == (5, 32)


def test_several_processes_write_one_file_in_the_order_of_the_text(tiny: Path, tmp_path: Path) -> None:
    (tmp_path / "in.txt").write_text("\n".join(SENTENCES) + "\n")
    assert run(3, encode_together, tiny, tmp_path / "in.txt", tmp_path / "rows.npy") == [0, 0, 0]
    assert np.allclose(np.load(tmp_path / "rows.npy"), load_encoder(tiny).encode(SENTENCES), atol=1e-6)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in.txt", "rows.npy"]


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_long_text_is_encoded_by_kernels_that_change_no_more_than_rounding(
    small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, precision: str
) -> None:
    try:
        library()
    except CannotCompile as error:
        pytest.skip(f"no kernels here: {error}")
    encoder = load_encoder(small)
    (tmp_path / "in.txt").write_text("\n".join(SENTENCES) + "\n")
    monkeypatch.setattr(encode, "CHUNK", 2)
    encode_file(encoder, str(tmp_path / "in.txt"), tmp_path / "rows.npy", precision=precision)
    assert encoder.stack is not None
    assert not encoder.stack_encodes
    tolerance = 1e-5 if precision == "fp32" else 0.03
    np.testing.assert_allclose(np.load(tmp_path / "rows.npy"), encoder.encode(SENTENCES), atol=tolerance)


def test_a_full_disk_is_a_failure_and_no_wrong_input(tiny: Path, tmp_path: Path) -> None:
    (tmp_path / "in.txt").write_text("a cat\n" * 100)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))
    try:
        with pytest.raises(SaveError, match="OUTPUT .* can't be written: File too large"):
            encode_file(load_encoder(tiny), str(tmp_path / "in.txt"), tmp_path / "rows.npy")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert [path.name for path in tmp_path.iterdir()] == ["in.txt"]


def test_blank_records_before_the_first_text_have_a_row_each(tiny: Path, tmp_path: Path) -> None:
    encoder = load_encoder(tiny)
    (tmp_path / "in.txt").write_text("\n\na\nb\n")
    assert encode_file(encoder, str(tmp_path / "in.txt"), tmp_path / "rows.npy") == (4, 32)
    np.testing.assert_allclose(np.load(tmp_path / "rows.npy"), encoder.encode(["", "", "a", "b"]), atol=1e-6)
