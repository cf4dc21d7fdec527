from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import typer
from torch.utils.flop_counter import FlopCounterMode
from transformers import BertConfig, BertModel
from typer.testing import CliRunner

from scripts.benchmark import (
    Contender,
    Measurement,
    bucketed,
    goals,
    main,
    products,
    read_sentences,
    summarize,
    table,
    training_flops,
)
from simcse_train.errors import InputError

LENGTHS = [3, 17, 17, 32, 5]
SIZES = {"layers": 3, "hidden": 32, "inner": 80}


def small_bert() -> BertModel:
    config = BertConfig(vocab_size=50, hidden_size=32, num_hidden_layers=3, num_attention_heads=4, intermediate_size=80)
    model = BertModel(config, add_pooling_layer=False)
    model.set_attn_implementation("eager")
    return model


def test_flops_are_those_that_torch_counts_on_sentences_without_padding() -> None:
    model = small_bert()
    with FlopCounterMode(display=False) as counter:
        for length in LENGTHS:
            model(input_ids=torch.arange(length)[None]).last_hidden_state.sum().backward()
    assert training_flops(LENGTHS, **SIZES, cls=False) == counter.get_total_flops()


def test_flops_of_a_last_layer_for_cls_alone_are_those_that_torch_counts() -> None:
    model = small_bert()
    last: Any = model.encoder.layer[-1]
    del model.encoder.layer[-1]
    attention = last.attention.self
    with FlopCounterMode(display=False) as counter:
        for length in LENGTHS:
            states = model(input_ids=torch.arange(length)[None]).last_hidden_state[0]  # (length, hidden)
            # Heads of 8; one query a sentence.
            query = attention.query(states[:1]).view(1, 4, 8).transpose(0, 1)  # (heads, 1, 8)
            key, value = (
                project(states).view(length, 4, 8).transpose(0, 1) for project in (attention.key, attention.value)
            )
            attended = ((query @ key.transpose(1, 2)).softmax(-1) @ value).transpose(0, 1).reshape(1, 32)
            first = last.attention.output(attended, states[:1])
            last.output(last.intermediate(first), first).sum().backward()
    assert training_flops(LENGTHS, **SIZES, cls=True) == counter.get_total_flops()


def test_products_hold_all_operations_but_those_of_the_attention() -> None:
    for cls in (False, True):
        counted = products(sum(LENGTHS), len(LENGTHS), **SIZES, cls=cls)
        linear = 3 * sum(2 * m * k * n * count for (m, k, n), count in counted.items())
        attention = 3 * sum(4 * 32 * (3 * x * x if not cls else 2 * x * x + x) for x in LENGTHS)
        assert linear + attention == training_flops(LENGTHS, **SIZES, cls=cls)


def test_bucketed_batches_hold_each_sentence_once_and_like_lengths() -> None:
    lengths = [int(x) for x in torch.randint(3, 33, (640,), generator=torch.Generator().manual_seed(0))]
    batches = bucketed(lengths, 16, seed=1)
    assert sorted(i for batch in batches for i in batch) == list(range(640))
    assert all(max(lengths[i] for i in batch) - min(lengths[i] for i in batch) <= 2 for batch in batches)
    longest = [max(lengths[i] for i in batch) for batch in batches]
    assert longest != sorted(longest)
    assert batches == bucketed(lengths, 16, seed=1) != bucketed(lengths, 16, seed=2)


def measurements(*speeds: float) -> list[Measurement]:
    return [Measurement(speed, memory=100.0, device_memory=0.0, profile=[]) for speed in speeds]


def test_the_summary_compares_medians_with_the_peer_its_fastest_switches_and_the_bound() -> None:
    rounds = {
        "peer": measurements(10, 30, 11),
        "peer-half": measurements(20),
        "peer-workers": measurements(18),
        "packed": measurements(44),
    }
    summary = summarize(rounds, rates=[7e9, 8e9, 100e9], flops_per_sentence=1e8)
    assert summary["rows"]["peer"] == {"median": 11, "lowest": 10, "highest": 30, "memory": 100, "device_memory": 0}
    assert (summary["bound"], summary["fastest_switched"]) == (80, "peer-half")
    assert summary["ratios"] == {"shipped": 4.0, "switched": 2.2, "bound": 0.55}
    assert [line.split("  ")[-1] for line in goals(summary).splitlines()] == ["met", "met", "NOT met"]


def test_a_row_that_failed_says_why_and_goals_without_a_peer_are_not_measured() -> None:
    compared = [Contender("peer", "sentence-transformers"), Contender("packed", "simcse-train", packed=True)]
    summary = summarize({"peer": [], "packed": measurements(40)}, rates=[8e9], flops_per_sentence=1e8)
    lines = table(compared, summary, {"peer": "no memory"}).splitlines()
    assert "failed: no memory" in lines[1]
    assert lines[2].startswith("simcse-train ") and lines[2].endswith("50%")
    assert goals(summary).count("not measured") == 2


def test_the_first_distinct_sentences_of_a_text_are_read(tmp_path: Path) -> None:
    path = tmp_path / "text.txt"
    path.write_text("b\n\na  x\u2028y \nb\nc\nd\n", encoding="utf-8")
    assert read_sentences(path, 3) == ["b", "a x y", "c"]
    with pytest.raises(InputError, match=r"holds 4 distinct sentences, not 5: lower --steps"):
        read_sentences(path, 5)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--data", "absent.txt"], "there is no such file"),
        (["--data", "x", "--shape", "huge"], "--shape huge: it is one of starter, mini, base"),
        (["--data", "x", "--contenders", "peer,fast"], "--contenders fast: there is no such row here"),
    ],
)
def test_wrong_input_to_the_benchmark_gets_a_plain_message(arguments: list[str], message: str) -> None:
    pytest.importorskip("matplotlib")
    app = typer.Typer()
    app.command()(main)
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 2
    assert message in result.output
