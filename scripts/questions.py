"""The tables of docs/questions.md, made with this program.

    python scripts/questions.py --model FOLDER --text NAME=FILE --text NAME=FILE

Prints Markdown: the labels and the loss of a batch `[a, a, b, b]`, InfoNCE beside the cross entropy of its logits, how
many negatives a triplet loss and a softmax act on, and for each text what temperature and dropout do.
"""

from __future__ import annotations

import argparse

import torch

from simcse_train.data.sample import sample_text
from simcse_train.encoders.loading import load_encoder
from simcse_train.evaluation.geometry import embed_views
from simcse_train.evaluation.hardness import gradient_shares, negative_cosines, view_cosine
from simcse_train.objectives.infonce import InfoNCE
from simcse_train.objectives.ntxent import NTXent
from simcse_train.objectives.objective import Rows
from simcse_train.report.inspect import DROPOUTS, TEMPERATURES
from simcse_train.search.embeddings import embed_rows

SENTENCES = ("A man plays the guitar.", "The market closed higher on Friday.")
BATCH = 64
MARGIN = 0.2
SAMPLE = 2048
VIEWS = 256


def batch_of_four(model: str) -> None:
    """Print the cosines, the labels and the losses of two sentences."""
    encoder = load_encoder(model)
    rows = encoder.tokenizer.tokenize(SENTENCES, 32)
    first, second = embed_views(encoder, rows)
    views = torch.stack([first, second], dim=1).flatten(0, 1)  # [a, a', b, b']
    cosines = views @ views.T
    print("| anchor | a | a' | b | b' | label |\n|---|---|---|---|---|---|")
    for name, row, label in zip(("a", "a'", "b", "b'"), cosines.tolist(), (1, 0, 3, 2), strict=True):
        shown = ["masked" if i == ["a", "a'", "b", "b'"].index(name) else f"{x:.2f}" for i, x in enumerate(row)]
        print(f"| {name} | {' | '.join(shown)} | {label} |")
    known = Rows(2, torch.tensor([0, 0, 1, 1]))
    print("\n| temperature | NT-Xent | InfoNCE | InfoNCE by its formula |\n|---|---|---|---|")
    for temperature in (0.05, 0.5):
        logits = first @ second.T / temperature
        formula = -(logits.diagonal().exp() / logits.exp().sum(dim=1)).log().mean()
        ntxent, infonce = (kind(temperature).loss(views, known) for kind in (NTXent, InfoNCE))
        print(f"| {temperature} | {ntxent:.6f} | {infonce:.6f} | {formula:.6f} |")


def text_tables(model: str, texts: dict[str, str]) -> None:
    """Print for each text on which negatives losses act, and what temperature and dropout do."""
    encoder = load_encoder(model)
    rows = {name: encoder.tokenizer.tokenize(sample_text([path], None, SAMPLE)[1], 32) for name, path in texts.items()}
    negatives = {name: negative_cosines(embed_rows(encoder, found), BATCH) for name, found in rows.items()}
    print(f"\n| text | hardest of {BATCH - 1} | triplets within a margin of {MARGIN} |\n|---|---|---|")
    for name, found in rows.items():
        first, second = embed_views(encoder, found[:VIEWS])
        positive = (first * second).sum(dim=1).mean()
        active = (negatives[name] > positive - MARGIN).float().mean()
        print(f"| {name} | {negatives[name][:, 0].mean():.2f} | {active:.2%} |")
    print("\n| temperature | " + " | ".join(f"{name}, hardest 1 % / 10 %" for name in texts) + " |")
    print("|---|" + "---|" * len(texts))
    for temperature in TEMPERATURES:
        shares = [gradient_shares(negatives[name], temperature) for name in texts]
        print(f"| {temperature} | " + " | ".join(f"{s.hardest_1:.0%} / {s.hardest_10:.0%}" for s in shares) + " |")
    print("\n| dropout | " + " | ".join(f"{name}, cosine to the embedding without noise" for name in texts) + " |")
    print("|---|" + "---|" * len(texts))
    for rate in DROPOUTS:
        noisy = load_encoder(model, dropout=rate)
        print(f"| {rate} | " + " | ".join(f"{view_cosine(noisy, rows[name][:VIEWS]):.3f}" for name in texts) + " |")


def main() -> None:
    """Print all tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True)
    parser.add_argument("--text", action="append", required=True, metavar="NAME=FILE")
    arguments = parser.parse_args()
    batch_of_four(arguments.model)
    text_tables(arguments.model, dict(entry.split("=", 1) for entry in arguments.text))


if __name__ == "__main__":
    main()
