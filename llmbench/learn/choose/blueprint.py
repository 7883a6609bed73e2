"""A blueprint: the choices that describe a model, from which its spec follows."""

from __future__ import annotations

import math
from functools import cached_property
from typing import Any, Literal

import msgspec

from llmbench.errors import LLMBenchError
from llmbench.sizing.params import count_parameters
from llmbench.spec.ffn import FFN, Dense, Gated, MoE, Router
from llmbench.spec.mixer import Attention
from llmbench.spec.model import Layer, ModelSpec, Norm
from llmbench.spec.position import Alibi, LearnedPositions, Positions, Rope

__all__ = ["LEAST", "MOST", "Blueprint", "even", "first_blueprint"]

LEAST, MOST = 10**7, 10**12
"""The smallest and the largest number of parameters."""
STEP = 64
"""The width of a feed-forward is a multiple of this number, or of a smaller power of two if many experts have it."""
MOST_ROUNDING = 0.01
"""The largest change of the number of parameters from one width to the next."""
ASPECT = 128
"""The hidden size per layer of LLaMA 7B (4,096 / 32), which most later models of this size kept."""
TABLES = ((128_256, False), (50_304, False), (32_000, False), (32_000, True))
"""Sizes of vocabularies, and whether embedding and head share one matrix, from the largest tables to the smallest."""
MOST_TABLES = 0.15
"""The largest share of the parameters that embedding and head may have."""


class Blueprint(msgspec.Struct, frozen=True, kw_only=True, dict=True):
    """The choices. The width of the feed-forward is not one of them: it follows from the number of parameters.

    `local`, `window`: number of layers with a window before each layer that sees all tokens, and this window. A window
    without local layers is in all layers. `experts`: number of experts; 0: no mixture. `per_token`: experts per token.
    `flash`: whether training uses flash attention, which does not change the spec.
    """

    parameters: int
    context: int
    layers: int
    heads: int
    head_dim: int
    vocab: int
    tied: bool
    kv_heads: int
    positions: Literal["rope", "alibi", "learned"] = "rope"
    theta: float = 10000.0
    gated: bool = True
    local: int = 0
    window: int | None = None
    experts: int = 0
    per_token: int = 0
    flash: bool = True

    def changed(self, **fields: Any) -> Blueprint:
        """Return the blueprint with other values of some fields."""
        return msgspec.structs.replace(self, **fields)

    @property
    def hidden(self) -> int:
        """The hidden size."""
        return self.heads * self.head_dim

    @cached_property
    def spec(self) -> ModelSpec:
        """The model whose number of parameters is nearest to `parameters`.

        Raises LLMBenchError if the other parts alone have more parameters.
        """
        return self.with_width(self.width)

    @cached_property
    def width(self) -> int:
        """The width of the feed-forward, or of one expert. The number of parameters is linear in it."""
        small, large = (count_parameters(self.with_width(STEP * steps)).total for steps in (1, 2))
        step = STEP
        while step > 1 and (large - small) * step / STEP > MOST_ROUNDING * self.parameters:
            step //= 2
        width = step * round((STEP + STEP * (self.parameters - small) / (large - small)) / step)
        if width < step:
            raise LLMBenchError(
                f"{self.parameters:,} parameters are too few for this model without its feed-forward",
                hint="use more parameters, or a shorter context",
            )
        return width

    def with_width(self, width: int) -> ModelSpec:
        """Return the model with a feed-forward of this width."""
        whole = self._layer(width, None if self.local else self.window)
        layers, pattern = {"block": whole}, f"{self.layers}*block"
        if self.local:
            layers = {"local": self._layer(width, self.window), "global": self._layer(width, None)}
            groups, rest = divmod(self.layers, self.local + 1)
            pattern = f"{groups}*({self.local}*local global)" + (f" {rest}*local" if rest else "")
        return ModelSpec(
            name="choice",
            source="llmbench choose",
            vocab_size=self.vocab,
            hidden_size=self.hidden,
            tie_word_embeddings=self.tied,
            max_position_embeddings=self.context,
            positions=self._positions(),
            norm=Norm(kind="rmsnorm"),
            layers=layers,
            pattern=pattern,
        )

    def _layer(self, width: int, window: int | None) -> Layer:
        mixer = Attention(
            num_attention_heads=self.heads,
            num_key_value_heads=self.kv_heads,
            head_dim=self.head_dim,
            sliding_window=window,
        )
        ffn: FFN
        if self.experts:
            router = Router(scores="softmax_topk")
            ffn = MoE(
                num_experts=self.experts, num_experts_per_tok=self.per_token, intermediate_size=width, router=router
            )
        else:
            ffn = Gated(intermediate_size=width) if self.gated else Dense(intermediate_size=width)
        return Layer(mixer=mixer, ffn=ffn)

    def _positions(self) -> Positions:
        match self.positions:
            case "rope":
                return Rope(theta=self.theta)
            case "alibi":
                return Alibi()
            case "learned":
                return LearnedPositions(num_positions=self.context)


def first_blueprint(parameters: int, context: int) -> Blueprint:
    """Return a plain model: multi-head attention, SwiGLU, RoPE, and a usual shape.

    The hidden size per layer is near ASPECT. A layer has about 12 × hidden² parameters. With this number, the width of
    a SwiGLU is near 8/3 × hidden (arXiv 2002.05202). Embedding and head have at most MOST_TABLES of the parameters,
    with the largest vocabulary of TABLES for which this holds, or else the smallest tables.

    Raises LLMBenchError for a number of parameters below LEAST or above MOST.
    """
    if not LEAST <= parameters <= MOST:
        raise LLMBenchError(f"--params {parameters:,}: must be from {LEAST:,} to {MOST:,}")
    shapes = []
    for heads in range(4, 257, 4):
        for head_dim in (64, 128):
            hidden = heads * head_dim
            vocab, tied = next(
                (each for each in TABLES if _table(*each, hidden) <= MOST_TABLES * parameters), TABLES[-1]
            )
            layers = even((parameters - _table(vocab, tied, hidden)) / 12 / hidden**2)
            shapes.append((_distance(hidden, layers, head_dim), layers, heads, head_dim, vocab, tied))
    _, layers, heads, head_dim, vocab, tied = min(shapes)
    return Blueprint(
        parameters=parameters,
        context=context,
        layers=layers,
        heads=heads,
        head_dim=head_dim,
        vocab=vocab,
        tied=tied,
        kv_heads=heads,
    )


def even(number: float) -> int:
    """Return the nearest even number of layers, at least 2."""
    return max(2, 2 * round(number / 2))


def _table(vocab: int, tied: bool, hidden: int) -> int:
    """Return the parameters of embedding and head."""
    return (1 if tied else 2) * vocab * hidden


def _distance(hidden: int, layers: int, head_dim: int) -> float:
    """Return how far a shape is from the usual one. Heads of width 128 are usual from a hidden size of 2,048."""
    usual_head = 128 if hidden >= 2048 else 64
    return abs(math.log(hidden / layers / ASPECT)) + (head_dim != usual_head)
