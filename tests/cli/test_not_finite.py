"""An encoder that has no finite embedding for a rare word is refused by every command, with the sentence."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from simcse_train.encoders.encoder import input_embeddings
from simcse_train.encoders.loading import load_encoder
from simcse_train.encoders.saving import save_encoder
from simcse_train.errors import InputError
from simcse_train.evaluation.transfer import FILES
from tests.cli.test_commands import refused
from tests.evaluation.test_transfer import senteval

SAID = "no finite embedding for {} sentences, the first of which is {!r}. Its weights are damaged or too large"


def with_row(tiny: Path, folder: Path, word: str, value: float) -> Path:
    """Save an encoder whose embedding of a word has a value in its first place."""
    encoder = load_encoder(tiny)
    table = input_embeddings(encoder.model)
    assert table is not None
    with torch.no_grad():
        table.weight[encoder.tokenizer.pretrained.convert_tokens_to_ids(word), 0] = value
    save_encoder(encoder, folder)
    return folder


@pytest.fixture(scope="module")
def overflows(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An encoder of finite weights, whose states overflow where a sentence has the word `dog`."""
    return with_row(tiny, tmp_path_factory.mktemp("models") / "overflows", "dog", 3e38)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_a_weight_that_is_not_finite_is_named_when_the_encoder_is_loaded(
    tiny: Path, tmp_path: Path, value: float
) -> None:
    folder = with_row(tiny, tmp_path / "broken", "guitar", value)
    with pytest.raises(InputError, match=r"broken: its weight 'model\.embeddings\.word_embeddings\.weight' holds"):
        load_encoder(folder)


def test_rows_of_no_token_and_a_part_that_nothing_passes_through_may_hold_anything(tiny: Path, tmp_path: Path) -> None:
    encoder = load_encoder(tiny)
    expected = encoder.encode(["a man plays guitar"])
    size = encoder.tokenizer.largest_id + 1
    encoder.model.resize_token_embeddings(size + 7, mean_resizing=False)
    table = input_embeddings(encoder.model)
    assert table is not None
    with torch.no_grad():
        table.weight[size:] = float("nan")
        encoder.model.pooler.dense.bias.fill_(float("nan"))  # type: ignore[union-attr, operator]
    save_encoder(encoder, tmp_path / "padded")
    assert (load_encoder(tmp_path / "padded").encode(["a man plays guitar"]) == expected).all()


def test_every_command_names_the_sentence(overflows: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lines = [f"a man {number}" for number in range(9)] + ["the dog", "a red dog"]
    (tmp_path / "t.txt").write_text("\n".join(lines))
    (tmp_path / "good.txt").write_text("\n".join(lines[:9]))
    (tmp_path / "labels.csv").write_text("text,label\n" + "\n".join(f"{line},{i % 2}" for i, line in enumerate(lines)))
    for of_all, sentence, arguments in [
        ("2 of 11", "the dog", ("--data", tmp_path / "t.txt", "--model", overflows, "--output", tmp_path / "run")),
        ("2 of 11", "the dog", ("encode", overflows, tmp_path / "t.txt", tmp_path / "rows.npy")),
        ("2 of 11", "the dog", ("search", overflows, "a man", "--data", tmp_path / "t.txt")),
        ("1 of 1", "my dog", ("search", overflows, "my dog", "--data", tmp_path / "good.txt")),
        ("2 of 11", "the dog", ("evaluate", overflows, "--data", tmp_path / "labels.csv", "--label-column", "label")),
    ]:
        assert SAID.format(of_all, sentence) in refused(capsys, *arguments), arguments
    said = refused(capsys, "inspect", "--data", tmp_path / "t.txt", "--model", overflows)
    assert "no finite embedding for 2 of 11 sentences" in said  # of a sample, which has an order of its own
    assert {path.name for path in tmp_path.iterdir()} == {"t.txt", "good.txt", "labels.csv"}  # nothing is left behind


def test_a_transfer_task_names_the_sentence(
    overflows: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = senteval(tmp_path)
    for name in FILES["SUBJ"]:
        (folder / name).write_text("a dog\nthe man\n" * 6)
    said = refused(capsys, "evaluate", overflows, "--tasks", "transfer", "--data", folder)
    assert SAID.format("12 of 24", "a dog") in said


def test_states_that_are_not_finite_for_ordinary_words_are_found_when_the_encoder_is_loaded(
    tiny: Path, tmp_path: Path
) -> None:
    folder = with_row(tiny, tmp_path / "overflows", "guitar", 3e38)
    with pytest.raises(InputError, match=r"overflows gives states that are not finite numbers, for sentences such as"):
        load_encoder(folder)
