"""Checks on a loaded encoder: it gives what plain transformers gives, by the fastest way of computing that does.

The reference is the model as `AutoModel` loads it, on batches that its tokenizer pads, of real sentences that are
short, long and mixed: longer than every window of attention, since a model may compute long sentences in another way.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from simcse_train.encoders.attention import compute_first_tokens_in_last_layer, layer_list
from simcse_train.encoders.encoder import Encoder, first_position, mode
from simcse_train.encoders.packing import pack
from simcse_train.encoders.padding import accepted_inputs
from simcse_train.errors import InputError, one_line
from simcse_train.randomness import seeded

SHORT = (
    "Why?",
    "A man is playing a guitar.",
    "一只猫坐在垫子上。",
    "The market closed higher on Friday, as nobody had expected.",
)
LONG = (
    "The painter waited near the lake until the boats came home. Prices rose by 3.5 % in May, then fell again. She "
    "asked: who wrote this letter, and when? In 1871 the two towns built a bridge of stone, which stood for ninety "
    "years. Rain is likely in the north; the south stays dry. He can't remember the colour of the door. "
)
LENGTH = 72  # tokens of the long probe where nothing asks for more
WORK = 2e9  # multiplications that the long probe may take where nothing asks for a longer one
MANY = 2_048  # positions up to which a packed batch with more tokens than that is tried
MOST = 1_000  # tokens of the longest probe

# The tensors of a tokenizer that are fed, or that follow from the token ids alone.
USUAL = {"input_ids", "attention_mask", "token_type_ids"}


@torch.inference_mode()
def choose_computation(encoder: Encoder, name: str, *, packed: bool) -> None:
    """Choose packed batches, padded ones or those of equal lengths: the first that gives the states of the reference.

    With `packed` false, packed batches are not tried. Where `[CLS]` is the embedding, also let the last layer compute
    nothing else, if that gives the same embedding. Raises `InputError`, with what differs, if no way of computing gives
    the reference's states.
    """
    short = [text for text in SHORT if encoder.tokenizer.tokenize([text], LENGTH)[0]]
    batches = [short, [LONG * 40, LONG, short[-1]]]
    lengths = [min(LENGTH, encoder.max_positions), _long_length(encoder)]
    expected = [_reference(encoder, texts, length, name) for texts, length in zip(batches, lengths, strict=True)]
    packs = [pack(encoder.tokenizer.tokenize(t, n), encoder.device) for t, n in zip(batches, lengths, strict=True)]
    for (ids, _), (tokens, _) in zip(expected, packs, strict=True):
        if not torch.equal(ids, tokens):
            raise InputError(
                f"The encoder {name}: its tokenizer gives other tokens when it is asked for a padded batch than for "
                "single sentences. Check its tokenizer files, or choose another --model."
            )
    alone = [
        torch.cat([_reference(encoder, [text], length, name)[1] for text in texts])
        for texts, length in ((batches[0], lengths[0]), (batches[1][1:], lengths[1]))
    ]
    reads_padding = not (_close(expected[0][1], alone[0]) and _close(expected[1][1][-len(alone[1]) :], alone[1]))
    if reads_padding:
        _use_equal_lengths(encoder, name, packs[0], alone[0])
        return
    encoder.float32_only = _fails_in_bfloat16(encoder, packs[0])
    attention = encoder.model.config._attn_implementation
    if packed and _counts_every_token(encoder) and _try_packed(encoder, packs, [states for _, states in expected]):
        _try_first_tokens(encoder, packs, [states for _, states in expected])
        return
    encoder.packed = False
    encoder.model.set_attn_implementation(attention)
    # Imported here: it imports DeBERTa, for which a start with any packed encoder need not wait.
    from simcse_train.encoders.relative import cut_relative_embeddings

    cut_relative_embeddings(encoder.model)
    if not all(_close(encoder.states(*p), states) for p, (_, states) in zip(packs, expected, strict=True)):
        raise InputError(
            f"The encoder {name} gives other states for its token ids than for all that its tokenizer gives "
            f"({', '.join(sorted(_inputs(encoder, short, LENGTH)))}), and token ids are all that is fed here. Choose "
            "another --model."
        )
    encoder.notes.append(
        "This encoder's attention can't be packed: padding is computed too, which is slower and gives the same result."
    )


def _use_equal_lengths(encoder: Encoder, name: str, batch: tuple[Tensor, Tensor], alone: Tensor) -> None:
    encoder.equal_lengths = True
    if not (_close(encoder.states(*batch), alone) and _close(encoder.states(*batch), alone)):
        raise InputError(
            f"The encoder {name} gives different states each time it reads the same sentence, without dropout. No "
            "embedding of it can be relied on. Choose another --model."
        )
    encoder.notes.append(
        "This encoder's states depend on the padding beside a sentence: it is given batches of equal lengths, which is "
        "slower. sentence-transformers gives the same embeddings with batch_size=1."
    )


def _long_length(encoder: Encoder) -> int:
    """Return the length of the long probe: beyond every window, and otherwise what costs little."""
    settings = encoder.model.config.to_dict()
    sizes = [
        value
        for name, value in settings.items()
        if any(word in name for word in ("window", "local", "block", "chunk"))
        for value in (value if isinstance(value, list) else [value])
        if isinstance(value, int) and not isinstance(value, bool)
    ]
    beyond = max((size + 24 for size in sizes if size + 24 <= MOST), default=0)
    parameters = sum(p.numel() for n, p in encoder.model.named_parameters() if "embedding" not in n)
    cheap = int(WORK / max(1, parameters))
    return max(3, min(max(LENGTH, beyond, min(cheap, 600)), encoder.max_positions, MOST))


def _inputs(encoder: Encoder, texts: Sequence[str], length: int) -> dict[str, Tensor]:
    tokenizer = encoder.tokenizer.pretrained
    given = tokenizer(
        [encoder.tokenizer.prompt + text for text in texts],
        padding=True,
        truncation=True,
        max_length=length,
        padding_side="right",
        return_tensors="pt",
        return_attention_mask=True,
        verbose=False,
    )
    return {key: value.to(encoder.device) for key, value in given.items()}


def _reference(encoder: Encoder, texts: Sequence[str], length: int, name: str) -> tuple[Tensor, Tensor]:
    """Return the token ids (total,) of a padded batch and the states (total, hidden) that the model gives it."""
    inputs = _inputs(encoder, texts, length)
    accepted = accepted_inputs(encoder.model)
    extra = sorted((inputs.keys() & accepted) - USUAL)
    if extra:
        raise InputError(
            f"The encoder {name} reads {', '.join(extra)} beside token ids, and token ids are all that is fed here. "
            "Choose another --model."
        )
    mask = inputs["attention_mask"].bool()
    output = encoder.model(**{key: value for key, value in inputs.items() if key in accepted})
    states = output.last_hidden_state
    encoder.token_size = states.shape[-1]  # for most models that of the configuration
    if not states[mask].isfinite().all():
        raise InputError(
            f"The encoder {name} gives states that are not finite numbers, for sentences such as {texts[-1]!r}. Its "
            "weights are damaged or too large: download or export it again, or choose another --model."
        )
    return inputs["input_ids"][mask], states[mask]


def _try_packed(encoder: Encoder, packs: list[tuple[Tensor, Tensor]], expected: list[Tensor]) -> bool:
    with torch.autocast(encoder.device.type, torch.bfloat16, enabled=not encoder.float32_only):
        in_bfloat16 = encoder.states(*packs[0]).float()
    encoder.packed = True
    try:
        encoder.model.set_attn_implementation("packed")
        same = all(_close(encoder.states(*p), states) for p, states in zip(packs, expected, strict=True))
        same = same and _takes_many(encoder, packs[0])
        return same and (bool(encoder.float32_only) or not _fails_in_bfloat16(encoder, packs[0], in_bfloat16))
    except Exception:  # whatever a model raises that is not made for it
        return False


def _counts_every_token(encoder: Encoder) -> bool:
    """Return whether the position of each token is its place in the sentence, whatever the tokens before it.

    RoBERTa and its kin do not count their padding token: where their configuration names another than the tokenizer
    does, that is a token which sentences have.
    """
    return first_position(encoder.model) in (0, encoder.tokenizer.padding_id + 1)


def _takes_many(encoder: Encoder, batch: tuple[Tensor, Tensor]) -> bool:
    """Return whether a packed batch may have more tokens than the model has positions, tried with one layer."""
    tokens, lengths = batch
    copies = encoder.max_positions // len(tokens) + 2
    if encoder.max_positions > MANY:
        return True
    layers = layer_list(encoder.model)
    hidden = [] if layers is None else [layers.pop(len(layers) - 1) for _ in range(len(layers) - 1)]
    try:
        once = encoder.states(tokens, lengths)
        return _close(encoder.states(tokens.repeat(copies), lengths.repeat(copies))[-len(tokens) :], once)
    finally:
        if layers is not None:
            layers.extend(reversed(hidden))


def _try_first_tokens(encoder: Encoder, packs: list[tuple[Tensor, Tensor]], expected: list[Tensor]) -> None:
    """Let the last layer compute first tokens alone if they are the embedding and stay the same."""
    if encoder.pooling != "cls":
        return
    try:
        compute_first_tokens_in_last_layer(encoder.model)
        encoder.first_only = all(
            _close(encoder.states(*p, first_only=True), states[p[1].cumsum(0) - p[1]])
            for p, states in zip(packs, expected, strict=True)
        )
    except Exception:  # as above
        encoder.first_only = False


def _fails_in_bfloat16(encoder: Encoder, batch: tuple[Tensor, Tensor], expected: Tensor | None = None) -> str:
    """Return why the encoder fails in bfloat16 or gives other states than expected; nothing if it does not."""
    try:
        with torch.autocast(encoder.device.type, torch.bfloat16):
            found = encoder.states(*batch).float()
    except Exception as error:  # whatever a model raises that is not made for it
        return one_line(error) or type(error).__name__
    if not found.isfinite().all():
        return "its states are not finite"
    # Two ways of rounding differ by a few units in the last of 8 bits, which layers amplify: a wrong mask is far off.
    distance = 0.0 if expected is None else float((found - expected).norm() / expected.norm())
    return f"its states are off by {distance:.2f}" if distance > 0.2 else ""


def _close(found: Tensor, expected: Tensor) -> bool:
    scale = float(expected.abs().max().clamp(min=1))
    return found.shape == expected.shape and torch.allclose(found, expected, atol=1e-4 * scale, rtol=1e-4)


@torch.inference_mode()
def check_shortest(encoder: Encoder, name: str) -> None:
    """Raise `InputError` if the encoder fails on an empty sentence, or on one of a few tokens."""
    least = max(1, encoder.tokenizer.special_tokens)
    for length in range(least, min(least + 5, encoder.max_length + 1)):
        batch = pack(encoder.tokenizer.tokenize([SHORT[3]], length), encoder.device)
        try:
            encoder.embed(*batch)
        except Exception as error:  # whatever a model raises that is not made for it
            raise InputError(
                f"The encoder {name}, of the type {encoder.model.config.model_type}, fails on sentences of {length} "
                f"tokens ({one_line(error)}). Choose another --model."
            ) from None


@torch.inference_mode()
def is_repeatable(encoder: Encoder) -> bool:
    """Return whether two passes in training mode with one seed give one embedding, as resuming a run needs."""
    batch = pack(encoder.tokenizer.tokenize([SHORT[3]], encoder.max_length), encoder.device)
    views = []
    for _ in range(2):
        with mode(encoder, training=True), seeded(0):
            views.append(encoder.embed(*batch))
    return torch.equal(*views)


@torch.inference_mode()
def is_deterministic(encoder: Encoder) -> bool:
    """Return whether two passes in training mode give the same embedding: then dropout makes no positive pairs."""
    sentence = "Two views of one sentence differ by dropout alone."
    tokens, lengths = pack(encoder.tokenizer.tokenize([sentence], encoder.max_length)[:1], encoder.device)
    with mode(encoder, training=True), seeded(0):
        views = [encoder.embed(tokens, lengths) for _ in range(4)]
    return all(torch.equal(view, views[0]) for view in views[1:])


@torch.inference_mode()
def first_and_last_know(encoder: Encoder) -> tuple[bool, bool]:
    """Return whether the first token's state depends on the tokens after it, and the last one's on those before it.

    The first does not in a model that reads from left to right. Neither does where the attention of a model is missing,
    as that of MRA without its CUDA kernel.
    """
    row = encoder.tokenizer.tokenize([SHORT[3]], min(LENGTH, encoder.max_positions))[0]
    others = [row[0], *reversed(row[1:-1]), row[-1]]
    if row == others:
        return True, True
    states = encoder.padded_states(*pack([row, others], encoder.device))
    same = [torch.allclose(states[i], states[len(row) + i], atol=1e-6, rtol=1e-6) for i in (0, len(row) - 1)]
    return not same[0], not same[1]
