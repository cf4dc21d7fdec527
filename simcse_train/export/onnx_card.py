"""What the model card of an export to ONNX says of the graph, and of all that is not in it."""

from __future__ import annotations

import json
from html import escape
from pathlib import Path
from string import Template

from simcse_train.data.display import shown
from simcse_train.encoders.encoder import Encoder
from simcse_train.export.model_card import as_code, licence

GRAPH = "onnx/model.onnx"
SECTION = Path(__file__).parent / "onnx_card.md"


def card_of_copy(source: Path, name: str) -> str:
    """Return the card of an encoder that is exported as it is, without a run that would say more of it."""
    return CARD.format(name=escape(shown(name)), metadata=licence(str(source)), source=as_code(source.name))


def about_graph(encoder: Encoder, checked: str) -> str:
    """Return what the card says of the graph, and of what is not in it: whoever uses it alone has to do the rest."""
    kinds = [type(module).__name__ for module in encoder.modules_after]
    after = [f"`{i}_{kind}`" for i, kind in enumerate(kinds, start=2) if kind != "Normalize"]
    before = []
    if encoder.tokenizer.prompt:
        quoted = as_code(json.dumps(encoder.tokenizer.prompt, ensure_ascii=False))
        before.append(f"The prompt {quoted} stands before every sentence.")
    if not encoder.tokenizer.is_direct:
        before.append("The tokenizer needs transformers: tokenizer.json alone gives other tokens, or is not there.")
    return Template(SECTION.read_text(encoding="utf-8")).substitute(
        graph=GRAPH,
        checked=checked,
        pooling=encoder.pooling,
        after=f", then passed through {' and '.join(after)} of this folder" if after else "",
        before="".join(f" {sentence}" for sentence in before),
    )


CARD = """---
library_name: sentence-transformers
pipeline_tag: sentence-similarity
tags: [sentence-transformers, simcse]
{metadata}---

# {name}

A sentence encoder, the same as {source}.

```python
from sentence_transformers import SentenceTransformer

SentenceTransformer("path/to/this/folder", backend="onnx").encode(["A sentence."])
```
"""
