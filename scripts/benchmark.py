"""Print how fast this program trains beside its peers, and beside what the machine could do.

    pip install -e ".[bench]"
    python scripts/benchmark.py --shape mini --data ../shared/data/corpora/wikipedia-en.txt.xz

All start from the same weights and learn from the same sentences, cut at the same length, in batches of the same size: this program as
it comes and with padded batches, sentence-transformers' SimCSE recipe as it ships (MultipleNegativesRankingLoss at scale 20 on pairs of a
sentence and itself) and with its switches thrown one after another. Each measurement is a process of its own, so that its peak memory
is its own and nothing warms another; the contenders take turns for several rounds, and medians are shown. The clock is read after
optimiser steps, the same for all: a step counts from batch to weights, the peer's tokenising included, which it does there; this
program tokenised its text before. The first steps are not counted.

The bound is what the machine could reach: the floating-point operations that the real tokens need, divided by the rate at which it
multiplies matrices of the model's own shapes, measured in the same rounds. Embeddings, norms, dropout, softmax, the loss, the head and
the optimiser count as free in it, and attention as fast as the large products, so nothing reaches 100 %.

Sentences a second are the text's sentences, not their two views. Memory is the peak of the process, and of the card where there is
one; data loader workers come on top.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import logging
import multiprocessing
import os
import platform
import resource
import statistics
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, dataclass, replace
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any
from unittest.mock import patch

import torch
import typer
from torch.optim.optimizer import register_optimizer_step_post_hook

from simcse_train.errors import InputError

# Each contender's process imports this file as well; what only one of them needs is imported where it is used, or the peak memory
# of the others would hold it too.

SHAPES: dict[str, dict[str, int]] = {
    "starter": {},  # the bundled encoder with its weights; the others are new BERTs with random ones
    "mini": {"num_hidden_layers": 6, "hidden_size": 384, "num_attention_heads": 12, "intermediate_size": 1536},
    "base": {"num_hidden_layers": 12, "hidden_size": 768, "num_attention_heads": 12, "intermediate_size": 3072},
}
WARMUP = 20  # steps that are not counted: memory is taken from the system in them
PROFILED = 5  # steps that are profiled, in a run of their own
NEVER = 10**9
GOALS = {"shipped": 3.5, "switched": 1.8, "bound": 0.65}


@dataclass(frozen=True)
class Contender:
    """One way to train, and the switches it has thrown."""

    name: str
    trainer: str
    precision: str = "fp32"
    sorted: bool = False  # batches of like length
    one_pass: bool = False  # both views in one forward pass
    workers: int = 0  # processes that tokenise and collate beside the step
    compiled: bool = False  # torch.compile
    flash: bool = False  # flash attention, which sentence-transformers feeds without padding
    packed: bool = False  # this program's batches without padding


@dataclass(frozen=True)
class Job:
    """What all contenders have in common in a round."""

    model: str
    text: str
    steps: int
    batch_size: int
    max_length: int
    device: str
    threads: int
    seed: int = 0
    warmup: int = WARMUP
    profile: bool = False


@dataclass(frozen=True)
class Measurement:
    """What one run of a contender gave."""

    sentences_per_second: float
    memory: float  # MiB, of the process
    device_memory: float  # MiB, of the card
    profile: list[dict[str, Any]]


class _Measured(Exception):
    """Ends a training run as soon as the steps are measured: what comes after them (export, checkpoints) is not."""


# What the batches cost.


def products(
    tokens: int, rows: int, *, layers: int, hidden: int, inner: int, cls: bool
) -> Counter[tuple[int, int, int]]:
    """Return the products of states and weights in a forward pass as (m, k, n) with how often each occurs.

    `tokens` is the number of real tokens in `rows` sentences. With `cls` the last layer needs keys and values of all tokens, but query,
    output projection and feed-forward of `[CLS]` alone. The attention's own products, of states with states, are left out.
    """
    found: Counter[tuple[int, int, int]] = Counter()
    for layer in range(layers):
        asked = rows if cls and layer == layers - 1 else tokens
        found[tokens, hidden, hidden] += 2  # key and value
        found[asked, hidden, hidden] += 2  # query and output projection
        found[asked, hidden, inner] += 1
        found[asked, inner, hidden] += 1
    return found


def training_flops(lengths: Sequence[int], *, layers: int, hidden: int, inner: int, cls: bool) -> int:
    """Return the floating-point operations of a forward and a backward pass over sentences of these lengths, without padding.

    A product (m, k) @ (k, n) takes 2 m k n, and its backward pass twice that: once for the gradient of each factor. Counted are the
    encoder layers of a BERT: the products with weights and the attention's two (scores and weighted sum). `cls` as in `products`.
    """
    linear = products(sum(lengths), len(lengths), layers=layers, hidden=hidden, inner=inner, cls=cls)
    forward = sum(2 * m * k * n * count for (m, k, n), count in linear.items())
    for length in lengths:
        forward += 4 * hidden * (length * length * (layers - cls) + length * cls)
    return 3 * forward


def product_rate(counts: dict[tuple[int, int, int], int], precision: str, device: str, threads: int) -> float:
    """Return the rate (operations a second) at which the machine does these products and their backward passes, measured now."""
    torch.set_num_threads(threads)
    dtype = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[precision]
    operations, seconds = 0, 0.0
    for (m, k, n), count in counts.items():
        states, weight, gradient = (torch.randn(size, device=device, dtype=dtype) for size in ((m, k), (n, k), (m, n)))
        for left, right in ((states, weight.T), (gradient, weight), (gradient.T, states)):
            operations += 2 * m * k * n * count
            seconds += count * _seconds_of_product(left, right)
    return operations / seconds


def _seconds_of_product(left: torch.Tensor, right: torch.Tensor) -> float:
    """Return the median of several blocks of about a twentieth of a second each."""
    blocks: list[float] = []
    repeats = 1
    while len(blocks) < 5:
        _synchronize(left.device.type)
        began = time.perf_counter()
        for _ in range(repeats):
            torch.mm(left, right)
        _synchronize(left.device.type)
        took = time.perf_counter() - began
        if took < 0.03:
            repeats *= 2
        else:
            blocks.append(took / repeats)
    return statistics.median(blocks)


# One measurement, in a process of its own.


class Clock:
    """Reads the time after optimiser steps, whoever takes them, and ends the run after the last that counts."""

    def __init__(self, job: Job) -> None:
        self.job = job
        self.step = 0
        self.began = 0.0
        self.profiler = torch.profiler.profile() if job.profile else None
        self.measurement: Measurement | None = None

    def __call__(self, *_: Any) -> None:
        """Take note of an optimiser step."""
        self.step += 1
        if self.step == self.job.warmup:
            _synchronize(self.job.device)
            self.began = time.perf_counter()
            if self.profiler:
                self.profiler.start()
        if self.step == self.job.warmup + self.job.steps:
            _synchronize(self.job.device)
            seconds = time.perf_counter() - self.began
            if self.profiler:
                self.profiler.stop()
            self.measurement = Measurement(
                sentences_per_second=self.job.steps * self.job.batch_size / seconds,
                memory=_peak_memory(),
                device_memory=torch.cuda.max_memory_allocated() / 2**20 if self.job.device == "cuda" else 0.0,
                profile=_operators(self.profiler, self.job, seconds) if self.profiler else [],
            )
            raise _Measured


def measure(contender: Contender, job: Job) -> Measurement:
    """Train as the contender does and return what the clock saw."""
    torch.set_num_threads(job.threads)
    logging.disable(logging.WARNING)
    clock = Clock(job)
    register_optimizer_step_post_hook(clock)
    with tempfile.TemporaryDirectory() as folder:
        try:
            (train_here if contender.trainer == "simcse-train" else train_peer)(contender, job, Path(folder))
        except _Measured:
            assert clock.measurement is not None
            return clock.measurement
    raise RuntimeError(f"only {clock.step} of {job.warmup + job.steps} optimiser steps were seen")


def train_here(contender: Contender, job: Job, folder: Path) -> None:
    """Train with this program."""
    from simcse_train import train
    from simcse_train.config import make_config

    os.environ["XDG_CACHE_HOME"] = str(folder)
    settings = {
        "data": job.text,
        "model": job.model,
        "output": str(folder / "run"),
        "max_steps": job.warmup + job.steps,
    }
    settings |= {
        "batch_size": job.batch_size,
        "max_length": job.max_length,
        "device": job.device,
        "precision": contender.precision,
    }
    config = make_config({**settings, "seed": job.seed, "eval_every": NEVER, "save_every": NEVER, "log_every": NEVER})
    # Users have no switch for it: what an encoder can do is found out when it is loaded.
    with (
        contextlib.nullcontext()
        if contender.packed
        else patch("simcse_train.encoder._packs_exactly", return_value=False)
    ):
        train(config)


def train_peer(contender: Contender, job: Job, folder: Path) -> None:
    """Train with sentence-transformers.

    What it ships with already: scaled-dot-product attention and the fused AdamW. What it does not listen to: its arguments take
    `train_sampling_strategy="group_by_length"`, but its data loader never asks for it; a batch sampler of one's own is the way
    that its documentation names. For one pass the two-column loss has no argument; `embed_columns(separate_first=False)` is what its
    own documentation names for columns of one kind.
    """
    from datasets import Dataset
    from sentence_transformers import (
        SentenceTransformer,
        SentenceTransformerTrainer,
        SentenceTransformerTrainingArguments,
    )
    from sentence_transformers.base.losses.merged_forward import embed_columns
    from sentence_transformers.base.sampler import BatchSamplers, DefaultBatchSampler
    from sentence_transformers.sentence_transformer.losses import MultipleNegativesRankingLoss
    from transformers import PrinterCallback

    class OnePass(MultipleNegativesRankingLoss):
        def forward(self, sentence_features: Any, labels: torch.Tensor) -> torch.Tensor:
            embeddings = embed_columns(self.model, sentence_features, separate_first=False)
            return self.compute_loss_from_embeddings(embeddings, labels)

    class Bucketed(DefaultBatchSampler):
        def __iter__(self) -> Iterator[list[int]]:
            return iter(bucketed(lengths, self.batch_size, job.seed))

    sentences = Path(job.text).read_text(encoding="utf-8").splitlines()
    options = {"attn_implementation": "flash_attention_2"} if contender.flash else {}
    model = SentenceTransformer(job.model, device=job.device, model_kwargs=options)
    lengths = [len(row) for row in model.tokenizer(sentences, truncation=True, max_length=job.max_length)["input_ids"]]
    arguments = SentenceTransformerTrainingArguments(
        output_dir=str(folder),
        max_steps=job.warmup + job.steps,
        per_device_train_batch_size=job.batch_size,
        learning_rate=3e-5,
        seed=job.seed,
        use_cpu=job.device == "cpu",
        bf16=contender.precision == "bf16",
        fp16=contender.precision == "fp16",
        torch_compile=contender.compiled,
        dataloader_num_workers=contender.workers,
        dataloader_persistent_workers=contender.workers > 0,
        dataloader_pin_memory=job.device == "cuda",
        save_strategy="no",
        logging_strategy="no",
        report_to="none",
        disable_tqdm=True,
        batch_sampler=Bucketed if contender.sorted else BatchSamplers.BATCH_SAMPLER,
    )
    loss = (OnePass if contender.one_pass else MultipleNegativesRankingLoss)(model, scale=20.0)
    dataset = Dataset.from_dict({"anchor": sentences, "positive": sentences})
    trainer = SentenceTransformerTrainer(model=model, args=arguments, train_dataset=dataset, loss=loss)
    trainer.remove_callback(PrinterCallback)
    trainer.train()


def bucketed(lengths: Sequence[int], batch_size: int, seed: int) -> list[list[int]]:
    """Return batches of sentences of like length in random order: sorted within random buckets of 50 batches, as transformers does it."""
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(lengths), generator=generator).tolist()
    size = 50 * batch_size
    buckets = [sorted(order[start : start + size], key=lambda i: lengths[i]) for start in range(0, len(order), size)]
    grouped = list(itertools.chain(*buckets))
    batches = [grouped[start : start + batch_size] for start in range(0, len(grouped), batch_size)]
    return [batches[i] for i in torch.randperm(len(batches), generator=generator).tolist()]


def _synchronize(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()
    elif device == "mps":
        torch.mps.synchronize()


def _peak_memory() -> float:
    """Return the most memory in MiB that this process has held."""
    status = Path("/proc/self/status")
    if status.exists():  # getrusage would also count what the parent held when it made this process
        return int(status.read_text().split("VmHWM:")[1].split()[0]) / 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 1024)


def _operators(profiler: torch.profiler.profile, job: Job, seconds: float) -> list[dict[str, Any]]:
    """Return the operators that a step spends most of its own time in: name, share of the step, milliseconds and calls per step."""
    events = [
        (
            event.key,
            (event.self_device_time_total if job.device == "cuda" else event.self_cpu_time_total) / 1e6,
            event.count,
        )
        for event in profiler.key_averages()
    ]
    return [
        {"operator": key, "share": own / seconds, "milliseconds": own / job.steps * 1e3, "calls": count / job.steps}
        for key, own, count in sorted(events, key=lambda event: -event[1])[:14]
    ]


# The comparison.


def contenders(precision: str, device: str, cores: int) -> list[Contender]:
    """Return who is compared: the peer, if it is installed, with one switch more in each row, and this program."""
    found: list[Contender] = []
    if find_spec("sentence_transformers"):
        found.append(Contender("peer", "sentence-transformers"))
        if precision != "fp32":
            found.append(replace(found[-1], name="peer-half", precision=precision))
        found.append(replace(found[-1], name="peer-sorted", sorted=True))
        found.append(replace(found[-1], name="peer-one-pass", one_pass=True))
        found.append(replace(found[-1], name="peer-workers", workers=max(1, min(8, cores // 2))))
        # On a processor torch.compile gained nothing and took a minute; name the row to have it.
        found.append(replace(found[-1], name="peer-compiled", compiled=True))
        if device == "cuda" and find_spec("flash_attn"):
            # It has no padding left to sort away, and refuses to put both views of such a batch together.
            found.append(
                replace(found[-1], name="peer-flash", compiled=False, flash=True, sorted=False, one_pass=False)
            )
    found.append(Contender("padded", "simcse-train", precision, one_pass=True))
    found.append(Contender("packed", "simcse-train", precision, one_pass=True, packed=True))
    return found


def chosen_contenders(names: str | None, precision: str, device: str) -> list[Contender]:
    """Return the contenders of these names, with commas; raises `InputError` at an unknown one."""
    known = {contender.name: contender for contender in contenders(precision, device, os.cpu_count() or 1)}
    if names is None:
        return [contender for contender in known.values() if device == "cuda" or not contender.compiled]
    wanted = [name.strip() for name in names.split(",")]
    if unknown := [name for name in wanted if name not in known]:
        raise InputError(f"--contenders {unknown[0]}: there is no such row here. The rows are {', '.join(known)}.")
    return [known[name] for name in wanted]


def read_sentences(path: Path, count: int) -> list[str]:
    """Return the first distinct sentences of a text; raises `InputError` if it holds fewer."""
    from simcse_train.data.files import find_files, open_file, read_texts

    sentences: dict[str, None] = {}
    for file in find_files([str(path)]):
        with open_file(file) as raw:
            for text in read_texts(raw, file, None):
                if len(sentences) == count:
                    return list(sentences)
                if sentence := " ".join(text.split()):
                    sentences[sentence] = None
    if len(sentences) < count:
        raise InputError(
            f"--data {path} holds {len(sentences):,} distinct sentences, not {count:,}: lower --steps or --batch-size."
        )
    return list(sentences)


def make_model(
    shape: str, pooling: str, max_length: int, folder: Path, sentences: Sequence[str]
) -> tuple[dict[str, int], list[int]]:
    """Save the starting weights as a folder that all contenders load; return the layers' sizes and the length of each sentence in tokens.

    Every shape uses the starter's tokenizer: what a step costs depends on the number of pieces, not on which they are.
    """
    from transformers import AutoModel, AutoTokenizer, BertConfig

    from simcse_train.encoder import Encoder, save_encoder
    from simcse_train.encoders.loading import STARTER_FOLDER

    torch.manual_seed(0)
    sizes = SHAPES[shape]
    config = BertConfig(vocab_size=30522)
    config.update(sizes)
    model = AutoModel.from_config(config) if sizes else AutoModel.from_pretrained(STARTER_FOLDER)
    encoder = Encoder(model, AutoTokenizer.from_pretrained(STARTER_FOLDER), pooling, max_length)
    save_encoder(encoder, folder)
    config = model.config
    lengths = [len(row) for row in encoder.tokenize(sentences, max_length)]
    return {
        "layers": config.num_hidden_layers,
        "hidden": config.hidden_size,
        "inner": config.intermediate_size,
    }, lengths


def alone(function: Any, *arguments: Any) -> Any:
    """Return what the function returns in a fresh process."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(function, *arguments).result()


def machine(device: str, threads: int) -> dict[str, Any]:
    """Describe what the figures were measured on."""
    capabilities = torch.cpu.get_capabilities()
    wide = ("avx2", "avx512_f", "avx512_vnni", "avx512_bf16", "amx_tile", "amx_bf16", "neon", "sve", "bf16")
    packages = ("torch", "transformers", "sentence-transformers")
    return {
        "processor": str(capabilities.get("cpu_name") or _processor_name()),
        "card": torch.cuda.get_device_name() if device == "cuda" else None,
        "cores": os.cpu_count(),
        "threads": threads,
        "capabilities": [name for name in wide if capabilities.get(name)],
        "system": f"{platform.system()} {platform.machine()}, Python {platform.python_version()}",
        "versions": {name: version(name) for name in packages if find_spec(name.replace("-", "_"))},
    }


def _processor_name() -> str:
    info = Path("/proc/cpuinfo")
    names = (
        [line.split(":")[1].strip() for line in info.read_text().splitlines() if line.startswith("model name")]
        if info.exists()
        else []
    )
    return names[0] if names else platform.processor() or "unknown processor"


def summarize(
    rounds: dict[str, list[Measurement]], rates: Sequence[float], flops_per_sentence: float
) -> dict[str, Any]:
    """Return medians over the rounds, the bound in sentences a second, and the three ratios that are goals, None where one can't be had."""
    rows = {
        name: {
            "median": statistics.median(m.sentences_per_second for m in measured),
            "lowest": min(m.sentences_per_second for m in measured),
            "highest": max(m.sentences_per_second for m in measured),
            "memory": statistics.median(m.memory for m in measured),
            "device_memory": statistics.median(m.device_memory for m in measured),
        }
        for name, measured in rounds.items()
        if measured
    }
    bound = statistics.median(rates) / flops_per_sentence
    speed = {name: row["median"] for name, row in rows.items()}
    switched = max((name for name in speed if name.startswith("peer-")), key=speed.__getitem__, default=None)
    ours = speed.get("packed")
    return {
        "rows": rows,
        "bound": bound,
        "fastest_switched": switched,
        "ratios": {
            "shipped": ours / speed["peer"] if ours and "peer" in speed else None,
            "switched": ours / speed[switched] if ours and switched else None,
            "bound": ours / bound if ours else None,
        },
    }


def label(contender: Contender) -> str:
    """Return a row's name: for the peer as it ships, or with the switch that the row adds."""
    added = {
        "peer": "sentence-transformers, as shipped",
        "peer-half": f"  + {contender.precision}",
        "peer-sorted": "  + sorted batches",
        "peer-one-pass": "  + one pass",
        "peer-workers": f"  + {contender.workers} data loader worker" + "s" * (contender.workers > 1),
        "peer-compiled": "  + torch.compile",
        "peer-flash": "  flash attention, unpadded",
        "padded": "simcse-train, padded",
        "packed": "simcse-train",
    }
    return added[contender.name]


def table(compared: Sequence[Contender], summary: dict[str, Any], failures: dict[str, str]) -> str:
    """Return the table of all rows with their switches."""
    head = f"{'':<34}{'sorted':>7}{'1 pass':>7}{'workers':>8}{'precision':>10}{'sentences/s':>13}{'(min-max)':>16}"
    lines = [head + f"{'memory MiB':>12}{'x shipped':>11}{'of bound':>10}"]
    shipped = summary["rows"].get("peer", {}).get("median")
    for contender in compared:
        switches = f"{_mark(contender.sorted):>7}{_mark(contender.one_pass):>7}{contender.workers or '-':>8}{contender.precision:>10}"
        line = f"{label(contender):<34}{switches}"
        if contender.name in failures:
            lines.append(f"{line}  failed: {failures[contender.name]}")
            continue
        row = summary["rows"][contender.name]
        spread = f"({row['lowest']:.1f}-{row['highest']:.1f})"
        memory = f"{row['memory']:.0f}" + (f"+{row['device_memory']:.0f}" if row["device_memory"] else "")
        ratio = f"{row['median'] / shipped:.2f}" if shipped else "-"
        lines.append(
            f"{line}{row['median']:>13.1f}{spread:>16}{memory:>12}{ratio:>11}{row['median'] / summary['bound']:>10.0%}"
        )
    ratio = f"{summary['bound'] / shipped:.2f}" if shipped else "-"
    lines.append(f"{'bound':<34}{'':>32}{summary['bound']:>13.1f}{'':>16}{'':>12}{ratio:>11}{1:>10.0%}")
    return "\n".join(lines)


def goals(summary: dict[str, Any]) -> str:
    """Return a line for each goal: what was asked, what was reached, and whether it is met."""
    wanted = {
        "shipped": f"at least {GOALS['shipped']} x sentence-transformers as shipped",
        "switched": f"at least {GOALS['switched']} x its fastest row with switches ({summary['fastest_switched'] or 'none measured'})",
        "bound": f"at least {GOALS['bound']:.0%} of the bound",
    }
    lines = []
    for name, words in wanted.items():
        reached = summary["ratios"][name]
        figure = "not measured" if reached is None else f"{reached:.1%}" if name == "bound" else f"{reached:.2f} x"
        verdict = "" if reached is None else "met" if reached >= GOALS[name] else "NOT met"
        lines.append(f"{words:<66}{figure:>13}  {verdict}".rstrip())
    return "\n".join(lines)


def profile_table(operators: Sequence[dict[str, Any]]) -> str:
    """Return the operators of a step, the costliest first."""
    lines = [f"{'operator':<58}{'of the step':>12}{'ms a step':>11}{'calls':>8}"]
    for entry in operators:
        lines.append(
            f"{entry['operator'][:56]:<58}{entry['share']:>12.1%}{entry['milliseconds']:>11.1f}{entry['calls']:>8.0f}"
        )
    return "\n".join(lines)


def _mark(thrown: bool) -> str:
    return "yes" if thrown else "-"


def plot(compared: Sequence[Contender], summary: dict[str, Any], title: str, subtitle: str, target: Path) -> None:
    """Draw sentences a second as bars, the bound as a line."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    rows = [contender for contender in compared if contender.name in summary["rows"]]
    speeds = [summary["rows"][contender.name]["median"] for contender in rows]
    spreads = [[summary["rows"][c.name][end] for c in rows] for end in ("lowest", "highest")]
    shipped = summary["rows"].get("peer", {}).get("median")
    ink, dim, grey, blue, pale, red = "#222222", "#666666", "#b4b9c1", "#2463ae", "#8fb2dc", "#b3372f"

    height = 2.0 + 0.42 * len(
        rows
    )  # inches; the text above and below the bars takes the same room whatever their number
    figure, axes = pyplot.subplots(figsize=(9.6, height))
    figure.subplots_adjust(left=0.27, right=0.97, top=1 - 1.28 / height, bottom=0.62 / height)
    # A gap sets this program apart from the peer.
    places = [-number - 0.35 * (contender.trainer == "simcse-train") for number, contender in enumerate(rows)]
    colours = [{"packed": blue, "padded": pale}.get(contender.name, grey) for contender in rows]
    axes.axvline(summary["bound"], color=red, linewidth=1.4, linestyle=(0, (4, 2)), zorder=1)
    axes.barh(places, speeds, height=0.68, color=colours, zorder=2)
    behind = {"facecolor": "white", "edgecolor": "none", "pad": 1.5}
    for place, speed, lowest, highest in zip(places, speeds, *spreads, strict=True):
        axes.plot([lowest, highest], [place, place], color=ink, linewidth=1.2, solid_capstyle="butt", zorder=3)
        words = f"{speed:,.0f}" if speed >= 1000 else f"{speed:.1f}"
        words += f"   {speed / shipped:.2f} x" if shipped else ""
        spot = (max(speed, highest), place)
        axes.annotate(
            words, spot, (7, 0), textcoords="offset points", va="center", color=ink, fontsize=10, bbox=behind, zorder=4
        )
    above: dict[str, Any] = {
        "xycoords": ("data", "axes fraction"),
        "textcoords": "offset points",
        "ha": "center",
        "fontsize": 10,
    }
    axes.annotate(f"bound {summary['bound']:,.1f}", (summary["bound"], 1), (0, 3), color=red, **above)
    names = [label(contender).replace("  + ", "+ ").strip() for contender in rows]
    axes.set_yticks(places, names, fontsize=10, color=ink)
    axes.set_ylim(places[-1] - 0.5, 0.5)
    axes.set_xlim(0, max(1.08 * summary["bound"], *(1.22 * speed for speed in speeds)))
    axes.set_xlabel(
        "sentences a second: median, with a line from the slowest to the fastest round", fontsize=9, color=dim
    )
    axes.tick_params(axis="y", length=0)
    axes.tick_params(axis="x", labelsize=9, colors=dim)
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.spines["bottom"].set_color(grey)
    figure.text(0.015, 1 - 0.16 / height, title, va="top", fontsize=13, fontweight="bold", color=ink)
    figure.text(0.015, 1 - 0.46 / height, subtitle, va="top", fontsize=8.5, color=dim, linespacing=1.4)
    figure.savefig(target, dpi=160)
    pyplot.close(figure)


def benchmark(
    shape: str,
    data: Path,
    pooling: str,
    steps: int,
    rounds: int,
    batch_size: int,
    max_length: int,
    threads: int,
    device: str,
    precision: str,
    names: str | None,
    output: Path,
) -> None:
    """Measure, print, and write the JSON and the plot."""
    compared = chosen_contenders(names, precision, device)
    sentences = read_sentences(data, (WARMUP + steps) * batch_size)
    output.mkdir(parents=True, exist_ok=True)
    # For the contenders' processes: as many threads for tokenizers as for torch, no questions to the hub, no progress bars.
    os.environ |= {"RAYON_NUM_THREADS": str(threads), "HF_HUB_OFFLINE": "1", "TQDM_DISABLE": "1"}
    described = machine(device, threads)
    with tempfile.TemporaryDirectory() as folder:
        text, model = Path(folder) / "text.txt", Path(folder) / "model"
        text.write_text("\n".join(sentences) + "\n", encoding="utf-8")
        sizes, lengths = make_model(shape, pooling, max_length, model, sentences)
        job = Job(str(model), str(text), steps, batch_size, max_length, device, threads)
        mean_length = statistics.mean(lengths)
        weights = "its own weights" if shape == "starter" else "random weights, 30,522 pieces"
        typer.echo(
            f"{shape}: {sizes['layers']} layers of {sizes['hidden']}, {pooling} pooling, {weights}; batches of {batch_size}"
        )
        typer.echo(
            f"{data.name}: the first {len(sentences):,} distinct sentences, {mean_length:.1f} tokens each (cut at {max_length})"
        )
        typer.echo(machine_line(described, precision))

        cls = pooling == "cls"
        flops_per_sentence = 2 * training_flops(lengths, **sizes, cls=cls) / len(lengths)  # two views
        counts = dict(products(round(2 * batch_size * mean_length), 2 * batch_size, **sizes, cls=cls))
        rates: list[float] = []
        measured: dict[str, list[Measurement]] = {contender.name: [] for contender in compared}
        failures: dict[str, str] = {}
        for number in range(rounds):
            rates.append(alone(product_rate, counts, precision, device, threads))
            typer.echo(f"round {number + 1} of {rounds}: matrix products {rates[-1] / 1e9:,.0f} GFLOP/s", nl=False)
            for contender in compared:
                if contender.name in failures:
                    continue
                try:
                    measured[contender.name].append(alone(measure, contender, replace(job, seed=number)))
                except BrokenProcessPool:
                    failures[contender.name] = "its process was killed, perhaps for want of memory"
                except Exception as error:  # whatever a peer's switch runs into is its row's result
                    failures[contender.name] = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
                told = failures.get(contender.name) or f"{measured[contender.name][-1].sentences_per_second:.1f}"
                typer.echo(f"  {contender.name} {told}", nl=False)
            typer.echo("")
        ours = next((contender for contender in compared if contender.packed and contender.name not in failures), None)
        profiled = replace(job, steps=min(PROFILED, steps), profile=True)
        operators = alone(measure, ours, profiled).profile if ours else []

    for name in failures:
        measured[name] = []
    summary = summarize(measured, rates, flops_per_sentence)
    typer.echo("\n" + table(compared, summary, failures))
    cost, rate = flops_per_sentence / 1e9, statistics.median(rates) / 1e9
    typer.echo(
        f"bound: {cost:.2f} GFLOP a sentence (two views, forward and backward) at {rate:,.0f} GFLOP/s in {precision}"
    )
    typer.echo("\n" + goals(summary))
    if operators:
        typer.echo(
            f"\nwhere the time of a step goes (simcse-train, a run of its own under the profiler)\n{profile_table(operators)}"
        )
    name = f"{shape}-{data.name.split('.')[0]}"
    record = {
        "shape": {"name": shape, **sizes, "pooling": pooling},
        "text": {"name": data.name, "sentences": len(sentences), "mean_tokens": mean_length},
        "settings": {
            "steps": steps,
            "warmup": WARMUP,
            "batch_size": batch_size,
            "max_length": max_length,
            "precision": precision,
        },
        "machine": described,
        "contenders": [asdict(contender) for contender in compared],
        "rounds": {name: [asdict(m) for m in each] for name, each in measured.items()},
        "failures": failures,
        "products_per_second": rates,
        "flops_per_sentence": flops_per_sentence,
        **summary,
        "goals": GOALS,
        "profile": operators,
    }
    (output / f"{name}.json").write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    title = f"SimCSE training of a BERT of {sizes['layers']} layers, {sizes['hidden']} wide"
    subtitle = f"{data.name}, {mean_length:.1f} tokens a sentence, batches of {batch_size}, {pooling} pooling\n"
    subtitle += machine_line(described, precision)
    plot(compared, summary, title, subtitle, output / f"{name}.png")
    typer.echo(f"\n{output / name}.json and .png")
    if failures:
        raise typer.Exit(1)


def machine_line(described: dict[str, Any], precision: str) -> str:
    """Return the description of the machine in a line."""
    versions = ", ".join(f"{name} {number}" for name, number in described["versions"].items())
    card = f"{described['card']}, " if described["card"] else ""
    able = " ".join(described["capabilities"]) or "no wide arithmetic"
    threads = f"{described['threads']} thread" + "s" * (described["threads"] > 1)
    return f"{card}{described['processor']}, {described['cores']} cores ({able}), {threads}, {precision}; {versions}"


def main(
    data: Annotated[Path, typer.Option(help="Text to learn from, as simcse-train takes it.")],
    shape: Annotated[str, typer.Option(help="starter, mini (6 x 384) or base (12 x 768).")] = "mini",
    pooling: Annotated[
        str, typer.Option(help="cls, mean, or auto: mean for the starter, else cls, as in the paper.")
    ] = "auto",
    steps: Annotated[int, typer.Option(min=1, help=f"Steps that are timed, after {WARMUP} that are not.")] = 30,
    rounds: Annotated[int, typer.Option(min=1, help="How often each contender is measured.")] = 3,
    batch_size: Annotated[int, typer.Option(min=2)] = 64,
    max_length: Annotated[int, typer.Option(min=3)] = 32,
    threads: Annotated[
        int | None, typer.Option(min=1, help="Threads of each contender (default: torch's own choice).")
    ] = None,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
    precision: Annotated[
        str, typer.Option(help="auto, fp32, bf16 or fp16: this program's, and the peer's where it switches.")
    ] = "auto",
    contenders: Annotated[str | None, typer.Option(help="Only these rows, with commas, such as peer,packed.")] = None,
    output: Annotated[Path, typer.Option(help="Folder for the JSON and the plot.")] = Path("runs/benchmark"),
) -> None:
    """Measure this program beside its peers."""
    from simcse_train.plan import _precision, find_device  # the program's own choice is what is measured

    try:
        for option, value, known in (
            ("--shape", shape, tuple(SHAPES)),
            ("--pooling", pooling, ("auto", "cls", "mean")),
            ("--device", device, ("auto", "cpu", "cuda")),
            ("--precision", precision, ("auto", "fp32", "bf16", "fp16")),
        ):
            if value not in known:
                raise InputError(f"{option} {value}: it is one of {', '.join(known)}.")
        if not find_spec("matplotlib"):
            raise InputError('The plot needs matplotlib: pip install -e ".[bench]"')
        device = find_device(device)
        precision = _precision(precision, device)
        pooling = {"auto": "mean" if shape == "starter" else "cls"}.get(pooling, pooling)
        threads = threads or torch.get_num_threads()
        benchmark(
            shape, data, pooling, steps, rounds, batch_size, max_length, threads, device, precision, contenders, output
        )
    except InputError as error:
        typer.echo(str(error), err=True)
        raise typer.Exit(2) from None


if __name__ == "__main__":
    typer.run(main)
