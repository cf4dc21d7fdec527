from __future__ import annotations

from pathlib import Path

import torch

from simcse_train.encoders.loading import load_encoder
from simcse_train.encoders.packing import pack
from simcse_train.training.optimizer import clear_gradients, keep_embedding_gradient


def test_a_lasting_embedding_gradient_is_the_usual_one_and_does_not_pile_up(tiny: Path) -> None:
    usual, lasting = load_encoder(tiny, pooling="mean"), load_encoder(tiny, pooling="mean")
    keep_embedding_gradient(lasting.model)
    kept = lasting.model.get_input_embeddings().weight.grad
    for sentences in (["a man sings.", "a man, a man"], ["the dog"]):
        for encoder in (usual, lasting):
            clear_gradients(encoder)
            tokens, lengths = pack(encoder.tokenizer.tokenize(sentences, 16))
            encoder(tokens, lengths).square().sum().backward()
        expected = {name: p.grad for name, p in usual.named_parameters() if p.grad is not None}
        found = {name: p.grad for name, p in lasting.named_parameters() if p.grad is not None}
        assert found.keys() == expected.keys()
        for name, gradient in found.items():
            assert gradient.layout == torch.strided
            assert torch.allclose(gradient, expected[name], atol=1e-6), name
    assert lasting.model.get_input_embeddings().weight.grad is kept
