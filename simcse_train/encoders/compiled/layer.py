"""One layer in one pass: attention and feed-forward, each followed by a norm."""

from __future__ import annotations

from torch import Tensor

from simcse_train.encoders.compiled.add_norm import AddNorm, States
from simcse_train.encoders.compiled.attention import Attention, Layout
from simcse_train.encoders.compiled.families import Layer
from simcse_train.encoders.compiled.feed_forward import FeedForward
from simcse_train.encoders.compiled.work import Work


class LayerPass:
    """A layer's forward pass, and its backward pass with what the forward pass kept.

    Shapes: states are (tokens, hidden). Where the layout is of first tokens alone, the states after the attention and
    their gradients are (rows, hidden).
    """

    def __init__(self, work: Work, number: int, layer: Layer, layout: Layout) -> None:
        self.work, self.number, self.layer, self.layout = work, number, layer, layout
        projections = (layer.query, layer.key, layer.value)
        hidden, inner = layer.query.in_features, layer.inner.out_features
        together = work.states((number, "projections"), 3 * hidden, hidden)
        for place, projection in enumerate(projections):
            together[place * hidden : (place + 1) * hidden].copy_(projection.weight)
        self.weight = work.states((number, "weight"), hidden, hidden).copy_(layer.attended.weight)
        self.attention = Attention(work, number, layer, together, layout)
        self.attention_norm = AddNorm(work, (number, 1), layer.attended_norm, layer.dropout[1], layout.first_only)
        self.feed_forward = FeedForward(
            work,
            number,
            work.states((number, "inner weight"), inner, hidden).copy_(layer.inner.weight),
            work.states((number, "outer weight"), hidden, inner).copy_(layer.outer.weight),
            layer.inner.bias,
        )
        self.outer_norm = AddNorm(work, (number, 2), layer.outer_norm, layer.dropout[2], layout.first_only)

    def forward(self, states: States, out: Tensor | None = None) -> States:
        """Return the states after the layer; `out` receives them in float32 too, where given."""
        self.states = states.rounded
        self.attended = self.attention.forward(states.rounded)
        product = self.work.multiply(self.attended, self.weight, "product")
        residual = states.at(self.layout.starts) if self.layout.first_only else states
        middle = self.attention_norm.forward(product, self.layer.attended.bias, residual)
        self.middle = middle.rounded
        product = self.feed_forward.forward(middle.rounded)
        return self.outer_norm.forward(product, self.layer.outer.bias, middle, out)

    def backward(self, gradient: Tensor, more: Tensor | None) -> tuple[Tensor, Tensor, tuple[Tensor, ...]]:
        """Return the gradient of the layer's states in two parts, and those of `Layer.parameters`.

        gradient: that of the states after the layer, in float32, and `more`, in the precision of products, which is
        added to it. The result has the same two parts.
        """
        gradient, of_product, outer_norm = self.outer_norm.backward(gradient, more)
        more, feed_forward = self.feed_forward.backward(self.middle, of_product)
        gradient, of_product, attention_norm = self.attention_norm.backward(gradient, more)
        attended_weight = self.work.weight_gradient(of_product, self.attended)
        of_attended = self.work.multiply_back(of_product, self.weight, "attended gradient")
        of_states, projections = self.attention.backward(self.states, of_attended)
        if self.layout.first_only:
            of_first = gradient + of_states[0]
            gradient = self.work.exact("spread", *self.states.shape).zero_()
            gradient[self.layout.starts] = of_first
        inner_weight, inner_bias, outer_weight = feed_forward
        gamma, beta, attended_bias = attention_norm
        attended = (attended_weight, attended_bias, gamma, beta)
        gamma, beta, outer_bias = outer_norm
        outer = (inner_weight, inner_bias, outer_weight, outer_bias, gamma, beta)
        return gradient, of_states[-1], (*projections, *attended, *outer)
