"""Build a small Chinese BERT from text alone, train it with simcse-train, and print STS-B in Chinese before and after.

    python -m scripts.build_chinese --data ../shared/data --work build/chinese --minutes 30 --threads 1

The encoder is what a user of a Chinese BERT has, in small: a WordPiece vocabulary with one token for each character,
random weights, then masked-language training (Devlin et al. 2019, section 3.1; 15 % of the tokens) for the given
minutes of processor time. Its sentences are those of Wikipedia, a sentence per line. `simcse-train` then trains it on
the same text, once for each seed, with STS-B dev as `--eval`. STS-B test is scored before, at the best step by dev, and
at the last one.

The data folder holds `corpora/wikipedia-zh.txt.xz` and `sts/STS-B-zh/`. The encoder is kept in the work folder and
not built again where it exists; a run that exists is read.
"""

from __future__ import annotations

import itertools
import math
import platform
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import typer
from sklearn.feature_extraction.text import TfidfVectorizer
from torch import Tensor
from torch.nn.functional import cross_entropy
from transformers import BertConfig, BertForMaskedLM, BertTokenizer, PreTrainedTokenizerBase

from scripts.build_starter import batches_by_length, lines, pad
from simcse_train import load_encoder, train
from simcse_train.cli.app import import_quietly
from simcse_train.config import make_config
from simcse_train.data.pairs import Pair, read_pairs
from simcse_train.encoders.dropout import replace_dropout
from simcse_train.encoders.tokenizer import SentenceTokenizer
from simcse_train.evaluation.sts import similarity_score, spearman
from simcse_train.runs.folder import ENCODER, checkpoints
from simcse_train.training.plan import find_precision

TEXT, DEV, TEST = "corpora/wikipedia-zh.txt.xz", "sts/STS-B-zh/cnsd-sts-dev.txt", "sts/STS-B-zh/cnsd-sts-test.txt"
SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
HIDDEN, LAYERS, HEADS, INTERMEDIATE, POSITIONS = 256, 4, 4, 1024, 128
RARE = 20  # occurrences below which a character is no token
MAX_LENGTH = 64
BATCH = 128
LEARNING_RATE = 1e-3
WARM_UP = 0.05  # share of the time
MASKED, AS_MASK, AS_RANDOM = 0.15, 0.8, 0.1
LENGTHS, COUNTS = 4, 64  # what lengths and numbers of masked tokens are multiples of: a new shape is compiled anew
SIMCSE_STEPS = 250


def build_tokenizer(sentences: list[str], folder: Path) -> PreTrainedTokenizerBase:
    """Return a tokenizer with a token for each frequent character; Latin letters and digits also continue a word."""
    counts = Counter(character for sentence in sentences for character in sentence.lower() if not character.isspace())
    frequent = [character for character, count in counts.most_common() if count >= RARE]
    continued = [f"##{character}" for character in frequent if character.isalnum() and character < "\u3000"]
    folder.mkdir(parents=True, exist_ok=True)
    vocabulary = folder / "vocab.txt"
    vocabulary.write_text("".join(f"{piece}\n" for piece in (*SPECIAL, *frequent, *continued)), encoding="utf-8")
    return BertTokenizer(str(vocabulary), do_lower_case=True, model_max_length=POSITIONS)


def endless_batches(rows: list[list[int]], seed: int) -> Iterator[list[list[int]]]:
    """Yield whole batches of rows of similar length, epoch after epoch, each in another order."""
    lengths = np.array([len(row) for row in rows])
    for epoch in itertools.count():
        for batch in batches_by_length(lengths, BATCH, np.random.default_rng([seed, epoch])):
            if len(batch) == BATCH:
                yield [rows[i] for i in batch]


def pad_to_multiple(rows: list[list[int]]) -> dict[str, Tensor]:
    """Return input ids and mask, each (rows, longest row), the longest rounded up to a multiple of `LENGTHS`."""
    inputs = pad(rows)
    surplus = -inputs["input_ids"].shape[1] % LENGTHS
    return {name: torch.nn.functional.pad(tensor, (0, surplus)) for name, tensor in inputs.items()}


def mask_tokens(ids: Tensor, tokenizer: PreTrainedTokenizerBase) -> tuple[Tensor, Tensor]:
    """Return token ids (rows, longest) with some replaced, and which of them are to be predicted (rows, longest)."""
    order = torch.rand(ids.shape).masked_fill_(ids < len(SPECIAL), 2.0).flatten().argsort()
    count = max(1, round(MASKED * int((ids >= len(SPECIAL)).sum()) / COUNTS)) * COUNTS
    chosen = torch.zeros(ids.numel(), dtype=torch.bool).index_fill_(0, order[:count], True).view(ids.shape)
    how = torch.rand(ids.shape)
    masked = torch.where(chosen & (how < AS_MASK), torch.tensor(tokenizer.mask_token_id), ids)
    other = torch.randint(len(SPECIAL), len(tokenizer), ids.shape)
    return torch.where(chosen & (how >= AS_MASK) & (how < AS_MASK + AS_RANDOM), other, masked), chosen


def train_masked(model: BertForMaskedLM, rows: list[list[int]], tokenizer: PreTrainedTokenizerBase, minutes: float,
                 seed: int) -> None:  # fmt: skip
    """Train a model in place for the given processor time; the rate rises, then falls linearly with what is left."""
    replace_dropout(model)
    model.train()
    in_bfloat16 = find_precision("auto", "cpu") == "bf16"
    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE, weight_decay=0.01, fused=True)
    began, tokens, losses = time.process_time(), 0, []
    torch.manual_seed(seed)
    for step, batch in enumerate(endless_batches(rows, seed), start=1):
        spent = (time.process_time() - began) / 60 / torch.get_num_threads()
        done = spent / minutes
        if done >= 1:
            break
        inputs = pad_to_multiple(batch)
        ids, chosen = mask_tokens(inputs["input_ids"], tokenizer)
        with torch.autocast("cpu", torch.bfloat16, enabled=in_bfloat16):
            states = model.bert(ids, attention_mask=inputs["attention_mask"]).last_hidden_state
            loss = cross_entropy(model.cls(states[chosen]).float(), inputs["input_ids"][chosen])
        for group in optimizer.param_groups:
            group["lr"] = LEARNING_RATE * min(done / WARM_UP, (1 - done) / (1 - WARM_UP))
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        tokens += int(inputs["attention_mask"].sum())
        losses.append(loss.item())
        if step % 250 == 0:
            seen = f"{tokens:,} tokens in {spent:.1f} minutes"
            typer.echo(f"masked-language step {step}: loss {np.mean(losses[-250:]):.3f}, {seen}")
    typer.echo(f"masked-language training: {len(losses)} steps, {tokens:,} tokens, loss {np.mean(losses[-250:]):.3f}")


def build(text: Path, folder: Path, minutes: float, seed: int) -> None:
    """Write a Chinese BERT that was trained on a text to a folder."""
    sentences = list(lines(text))
    tokenizer = build_tokenizer(sentences, folder.with_name("vocabulary"))
    parts = (sentences[i : i + 10_000] for i in range(0, len(sentences), 10_000))  # all at once take gigabytes
    reading = SentenceTokenizer(tokenizer)
    rows = [row for part in parts for row in reading.tokenize(part, MAX_LENGTH) if len(row) > 4]
    typer.echo(f"{len(rows):,} sentences, {sum(map(len, rows)):,} tokens, vocabulary {len(tokenizer):,}")
    torch.manual_seed(seed)
    model = BertForMaskedLM(
        BertConfig(
            vocab_size=len(tokenizer),
            hidden_size=HIDDEN,
            num_hidden_layers=LAYERS,
            num_attention_heads=HEADS,
            intermediate_size=INTERMEDIATE,
            max_position_embeddings=POSITIONS,
            pad_token_id=tokenizer.pad_token_id,
        )
    )
    train_masked(model, rows, tokenizer, minutes, seed)
    model.bert.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def character_tfidf_score(pairs: list[Pair]) -> float:
    """Return Spearman x 100 of TF-IDF cosines over single characters and pairs of them."""
    vectorizer = TfidfVectorizer(analyzer="char", ngram_range=(1, 2))
    vectorizer.fit([sentence for pair in pairs for sentence in pair[:2]])
    first, second = (vectorizer.transform([pair[i] for pair in pairs]) for i in (0, 1))
    cosines = np.asarray(first.multiply(second).sum(axis=1)).ravel()
    return spearman(cosines, np.array([pair.score for pair in pairs])) or 0.0


def score(path: Path, pairs: list[Pair], pooling: str = "auto") -> float:
    """Return Spearman x 100 of an encoder's cosines; not a number where it has none."""
    found = similarity_score(load_encoder(path, pooling=pooling), pairs)
    return math.nan if found is None else found


def main(
    data: Annotated[Path, typer.Option(help="Folder with corpora/wikipedia-zh.txt.xz and sts/STS-B-zh.")],
    work: Annotated[Path, typer.Option(help="Folder for the encoder and the runs.")] = Path("build/chinese"),
    minutes: Annotated[float, typer.Option(help="Processor time of the masked-language training.")] = 30,
    threads: Annotated[int, typer.Option(help="Threads of torch.")] = 1,
    seeds: Annotated[str, typer.Option(help="Seeds of simcse-train, separated by commas.")] = "1,2,3",
) -> None:
    """Build a Chinese encoder, train it, and print its scores."""
    import_quietly()
    torch.set_num_threads(threads)
    encoder = work / "encoder"
    if not (encoder / "config.json").is_file():
        build(data / TEXT, encoder, minutes, seed=0)
    pairs = read_pairs(data / TEST)
    typer.echo(f"{platform.machine()}, {threads} threads, torch {torch.__version__}. STS-B test, Spearman x 100:")
    typer.echo(f"TF-IDF of characters {character_tfidf_score(pairs):.2f}")
    typer.echo(f"before, cls {score(encoder, pairs, 'cls'):.2f}, mean {score(encoder, pairs, 'mean'):.2f}")
    for pooling in ("mean", "cls"):
        for seed in map(int, seeds.split(",")):
            run = work / f"{pooling}-{seed}"
            if not checkpoints(run):
                settings = {"data": str(data / TEXT), "model": str(encoder), "pooling": pooling, "seed": seed}
                settings |= {"eval": str(data / DEV), "max_steps": SIMCSE_STEPS, "eval_every": 50, "output": str(run)}
                train(make_config(settings))
            last = checkpoints(run)[-1]
            best = run / ENCODER  # the encoder before training where no step was better
            found = f"last step {score(last, pairs):.2f}, best by dev {score(best, pairs):.2f}"
            typer.echo(f"{pooling}, seed {seed}: {found}")


if __name__ == "__main__":
    typer.run(main)
