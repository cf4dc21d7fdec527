"""Write docs/families.md: which encoder families are used, how, and which are refused, from the conformance tests.

    python scripts/families_table.py > docs/families.md

Each family is built small and loaded; what the program says of it is what the table says.
"""

from __future__ import annotations

import logging
import sys
import tempfile
import warnings
from pathlib import Path

import transformers

from simcse_train.encoders.loading import load_encoder
from simcse_train.errors import InputError
from tests.encoders.matrix import EXPECTED, LEFT_OUT, make_member


def row(family: str, folder: Path) -> str:
    """Return the line of the table for a family."""
    try:
        encoder = load_encoder(make_member(family, folder))
    except InputError as error:
        reason = str(error).removeprefix(f"The encoder {folder}").lstrip(" :,").split(". ")[0]
        return f"| {family} | refused | | | {reason} |"
    how = "packed" if encoder.packed else "equal lengths" if encoder.equal_lengths else "padded"
    precision = "fp32 only" if encoder.float32_only else "fp32, bf16"
    note = "the last layer computes `[CLS]` alone" if encoder.first_only else ""
    return f"| {family} | {how} | {encoder.pooling} | {precision} | {note} |"


def main() -> None:
    """Print the page."""
    logging.disable(logging.ERROR)
    warnings.simplefilter("ignore")
    print(f"""# Encoder families

Made by `scripts/families_table.py` with transformers {transformers.__version__}. `tests/encoders/test_matrix.py` tests
each family that is not refused. Its states are those of `AutoModel` on padded batches of 8, 70 and 600 tokens, training
steps in each precision lower the loss, and the saved encoder gives the same embeddings in sentence-transformers.

The column "batches" says how sentences of different lengths are computed together:

- packed: in one row without padding.
- padded: in up to four padded batches, each of sentences of similar length.
- equal lengths: in batches of sentences of one length, because the model's states depend on padding. For the same
  embeddings in sentence-transformers, use `batch_size=1` there.

The column "pooling" says what `--pooling auto` means for a model without sentence-transformers files. `cls` is the
state of the first token. `last` is that of the last token, for models that read from left to right. `mean` is the mean
of all states, for tokenizers that put no token before a sentence.

Each family is tested with the kind of tokenizer that it has: WordPiece, byte-level BPE, a unigram model, or BPE with
single bytes. The exceptions are esm, flaubert, roformer and xlm, which are tested with WordPiece.

| family | batches | pooling | precision | note |
|---|---|---|---|---|""")
    with tempfile.TemporaryDirectory() as work:
        for family in sorted(EXPECTED):
            print(row(family, Path(work) / family))
    print("\nNot tried, and why:\n")
    for families, reason in LEFT_OUT.items():
        print(f"- {families}: {reason}.")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
