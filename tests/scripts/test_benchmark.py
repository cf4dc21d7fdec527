"""The figures of the speed benchmark: its operation counts, its turns, its summary and its messages."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import typer
from torch.utils.flop_counter import FlopCounterMode
from transformers import BertConfig, BertModel
from typer.testing import CliRunner

from scripts.benchmark.__main__ import main
from scripts.benchmark.bound import product_flops, products, training_flops
from scripts.benchmark.contenders import OURS, PEER, Contender, Job
from scripts.benchmark.inputs import read_sentences
from scripts.benchmark.peer import bucketed
from scripts.benchmark.summary import goals, goals_of, steps_per_second, summarize, table
from scripts.benchmark.turns import ContenderFailed, Report, Running, Turn
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
        linear = product_flops(counted)
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


def reports(*seconds: float, waited: float = 0.0) -> list[Report]:
    return [Report(each, waited, memory=100.0, device_memory=0.0) for each in seconds]


COMPARED = [
    Contender("peer", PEER),
    Contender("peer-half", PEER, "bf16"),
    Contender("peer-workers", PEER, "bf16", workers=1),
    Contender("packed", OURS, "bf16", packed=True),
]


def test_the_summary_compares_medians_over_rounds_with_the_peer_its_fastest_switches_and_the_bound() -> None:
    rounds = {
        "peer": [reports(1.0, 1.0), reports(0.2, 0.6), reports(4.0)],  # 64, 160 and 16 sentences per second
        "peer-half": [reports(0.5)],
        "peer-workers": [reports(0.6)],
        "packed": [reports(1 / 6)],
    }
    summary = summarize(
        COMPARED,
        rounds,
        [reports(1.0), reports(0.5), reports(9.0)],
        64,
        flops_per_product_step=6e9,
        flops_per_sentence=2e7,
    )
    row = summary["rows"]["peer"]
    assert (row["median"], row["lowest"], row["highest"], row["steps"]) == (64, 16, 160, 5)
    assert (summary["bound"], summary["fastest_switched"]) == (300, "peer-half")
    assert summary["ratios"] == pytest.approx({"shipped": 6.0, "switched": 3.0, "bound": 384 / 300})
    assert [line.split("  ")[-1] for line in goals(summary, goals_of([])).splitlines()] == ["met", "met", "met"]
    slower = summary | {"ratios": {"shipped": 5.9, "switched": 1.9, "bound": 0.69}}
    assert goals(slower, goals_of([])).count("NOT met") == 3
    with_amx = goals(slower, goals_of(["avx512_bf16", "amx_tile", "amx_bf16"])).splitlines()
    assert with_amx[2].startswith("at least 50% of the bound") and with_amx[2].endswith("  met")
    assert with_amx[:2] == goals(slower, goals_of(["avx512_bf16"])).splitlines()[:2]
    compared = [*COMPARED, Contender("kernels", OURS, "bf16", packed=True, kernels=True)]
    faster = summarize(compared, rounds | {"kernels": [reports(1 / 8)]}, [reports(1.0)], 64, 6e9, 2e7)
    assert faster["ratios"]["shipped"] == pytest.approx(8.0)  # of the row with kernels, where there is one


def test_contended_steps_are_left_out_while_enough_others_remain() -> None:
    busy = reports(3.0, waited=0.02)
    assert steps_per_second(reports(1.0) + 3 * busy) == (1.0, False)
    assert steps_per_second(reports(1.0) + 4 * busy) == (5 / 13, True)  # a fifth is too few to stand for the round
    assert steps_per_second(3 * busy, own_workers=True) == (1 / 3, False)  # its own workers make it wait


def test_a_row_of_contended_steps_is_marked_in_the_table() -> None:
    rounds = {"peer": [reports(1.0)], "packed": [reports(1.0, 1.0, waited=0.5)]}
    summary = summarize(COMPARED, rounds, [reports(1.0)], 64, 1e9, 1e7)
    lines = table([COMPARED[0], COMPARED[-1]], summary, {}).splitlines()
    assert "64.0 " in lines[1] and "0/1" in lines[1]
    assert "64.0* " in lines[2] and "2/2" in lines[2]
    assert lines[-1].startswith("* Other programs ran")


def test_a_row_that_failed_says_why_and_goals_without_a_peer_are_not_measured() -> None:
    compared = [COMPARED[0], COMPARED[-1]]
    summary = summarize(compared, {"packed": [reports(1.0)]}, [reports(1.0)], 40, 8e9, 1e8)
    lines = table(compared, summary, {"peer": "no memory"}).splitlines()
    assert "failed: no memory" in lines[1]
    assert lines[2].startswith("simcse-train, packed ") and lines[2].endswith("50%")
    assert goals(summary, goals_of([])).count("not measured") == 2


def count_steps(path: Path, job: Job, clock: Callable[[], None]) -> None:
    """Append a byte to a file in each step, and fail after the tenth."""
    for _ in range(10):
        with path.open("a") as stream:
            stream.write(".")
        clock()
    raise ValueError("ten steps are enough")


def test_a_process_takes_as_many_steps_as_its_turn_allows_and_stands_still_between_turns(tmp_path: Path) -> None:
    path = tmp_path / "steps"
    job = Job("model", "text", steps=8, batch_size=2, max_length=8, device="cpu", threads=1, warmup=3)
    process = Running(count_steps, path, job=job)
    try:
        process.wait_until_ready()
        counts = [path.stat().st_size]
        for turn in (Turn(), Turn(4)):
            report = process.take(turn)
            assert 0 < report.seconds < 60 and report.waited >= 0 and report.memory > 10
            counts.append(path.stat().st_size)
            time.sleep(0.05)
            assert path.stat().st_size == counts[-1]
            assert state_of(process) == "T"  # stopped, with whatever else is in its group
        assert counts == [3, 4, 8]
        with pytest.raises(ContenderFailed, match="ValueError: ten steps are enough"):
            process.take(Turn(5))
    finally:
        process.end()


def state_of(process: Running) -> str:
    """Return the state of a process on Linux, T where that is unknown."""
    status = Path(f"/proc/{process.pid}/stat")
    return status.read_text().rsplit(")", 1)[1].split()[0] if status.exists() else "T"


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
        (["--data", "x", "--shape", "huge"], "--shape huge must be one of starter, mini, base"),
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
