"""ALiBi: a head adds −slope × distance to its scores (Press et al., arXiv 2108.12409)."""

from __future__ import annotations

import math

import torch

from llmbench.learn.worked.reference import model_attention
from llmbench.learn.worked.step import Case, Check, Worked, difference, dot, draw, number, numbered, step, term
from llmbench.model.positions import alibi_slopes
from llmbench.spec.position import alibi_slope

DEFAULT = Case(tokens=4, dim=4)
HEADS = 4
"""The number of heads. Their slopes are 1/4, 1/16, 1/64 and 1/256."""


def work(case: Case) -> Worked:
    """Compute the weights of the first head with and without its bias, and the slopes of 12 heads."""
    T, D, seed = case
    generator = torch.Generator().manual_seed(seed)
    q, k, v = draw(generator, T, D), draw(generator, T, D), draw(generator, T, D)
    slopes, twelve = (alibi_slope(torch.arange(heads, dtype=torch.float64), heads) for heads in (HEADS, 12))
    distance = (torch.arange(T) - torch.arange(T)[:, None]).double()
    seen = distance <= 0
    scores = q @ k.T / math.sqrt(D)
    bias = slopes[0] * distance
    added = scores + bias

    def weights_of(values: torch.Tensor) -> torch.Tensor:
        return values.masked_fill(~seen, -math.inf).softmax(-1)

    def visible(values: torch.Tensor) -> list[list[float | None]]:
        return [[cell if allowed else None for cell, allowed in zip(*row, strict=True)]
                for row in zip(values.tolist(), seen.tolist(), strict=True)]  # fmt: skip

    weights, plain = weights_of(added), weights_of(scores)
    output = weights @ v
    i = T - 1
    steps = [
        step(
            "slopes",
            f"slope[h] = 2^(−8 (h + 1) / N), N = {HEADS} heads",
            slopes[:, None],
            row="head",
            columns=["slope"],
            example=f"slope[0] = 2 ^ (−8 × (0 + 1) / {HEADS}) = {number(slopes[0])}",
        ),
        step(
            "slopes of 12 heads",
            "the slopes of 8 heads, then every second slope of 16 heads",
            twelve.reshape(3, 4),
            row="heads",
            rows=["0–3", "4–7", "8–11"],
            columns=["", "+1", "+2", "+3"],
            note="12 is no power of two. Head 8 has the first slope of 16 heads, 2^(−0.5), and head 9 the third.",
        ),
        step(
            "distances",
            "d[i, j] = j − i",
            visible(distance),
            row="query",
            column="key",
            note="– stands for a key after the query, which the mask hides.",
        ),
        step(
            "bias of head 0",
            "b[i, j] = slope[0] d[i, j]",
            visible(bias),
            row="query",
            column="key",
            example=f"b[{i}, 0] = {number(slopes[0])} × {term(distance[i, 0])} = {number(bias[i, 0])}",
        ),
        step("queries", "q. ALiBi changes no query and no key", q, column="ch."),
        step("keys", "k", k, column="ch."),
        step(
            "scores",
            "s = q kᵀ / √D",
            visible(scores),
            row="query",
            column="key",
            example=f"s[{i}, 0] = ({dot(q[i], k[0])}) / √{D} = {number(scores[i, 0])}",
        ),
        step(
            "scores with bias",
            "s' = s + b",
            visible(added),
            row="query",
            column="key",
            example=f"s'[{i}, 0] = {number(scores[i, 0])} + {term(bias[i, 0])} = {number(added[i, 0])}",
        ),
        step(
            "weights",
            "w = softmax over j of s'",
            weights,
            row="query",
            column="key",
            note="Weights without the bias are in the next step. The bias moves weight from far keys to near keys.",
        ),
        step("weights without bias", "softmax over j of s", plain, row="query", columns=numbered("key", T)),
        step("values", "v", v, column="ch."),
        step(
            "output",
            "o = w v",
            output,
            column="ch.",
            example=f"o[{i}, 0] = {dot(weights[i], v[:, 0])} = {number(output[i, 0])}",
        ),
    ]
    model = model_attention(q, k, v, causal=True, slopes=slopes[:1])
    return Worked(
        "linear biases (ALiBi)",
        case,
        steps,
        [
            Check("slopes of the PyTorch model", difference(slopes, alibi_slopes(HEADS))),
            Check("attention of the PyTorch model", difference(output, model)),
        ],
    )
