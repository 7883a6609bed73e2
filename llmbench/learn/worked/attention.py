"""Causal self-attention with one head: softmax(q kᵀ / √D) v (Vaswani et al., arXiv 1706.03762, equation 1)."""

from __future__ import annotations

import math

import torch

from llmbench.learn.worked.reference import model_attention
from llmbench.learn.worked.step import Case, Check, Worked, difference, dot, draw, joined, number, step, term

DEFAULT = Case(tokens=3, dim=4)


def work(case: Case) -> Worked:
    """Compute the output of one head. The output projection is left out."""
    T, D, seed = case
    generator = torch.Generator().manual_seed(seed)
    x = draw(generator, T, D)
    weights = [draw(generator, D, D, scale=0.5) for _ in range(3)]
    q, k, v = (x @ matrix for matrix in weights)
    scores = q @ k.T / math.sqrt(D)
    hidden = torch.ones(T, T, dtype=torch.bool).triu(1)
    masked = scores.masked_fill(hidden, -math.inf)
    largest = masked.max(-1, keepdim=True).values
    powers = torch.exp(masked - largest)
    sums = powers.sum(-1, keepdim=True)
    probabilities = powers / sums
    output = probabilities @ v
    i, j = T - 1, 0
    steps = [step("input", "x, the vectors of the tokens", x, column="ch.", note="Tokens and channels count from 0.")]
    for name, matrix, result in zip("QKV", weights, (q, k, v), strict=True):
        letter = name.lower()
        steps += [
            step(f"W_{name}", f"the weights of {letter}", matrix, row="input ch.", column="ch."),
            step(
                letter,
                f"{letter} = x W_{name}",
                result,
                column="ch.",
                example=f"{letter}[{i}, 0] = {dot(x[i], matrix[:, 0])} = {number(result[i, 0])}",
            ),
        ]
    steps += [
        step(
            "scores",
            "s = q kᵀ / √D",
            scores,
            row="query",
            column="key",
            example=f"s[{i}, {j}] = ({dot(q[i], k[j])}) / √{D} = {number(scores[i, j])}",
        ),
        step(
            "masked scores",
            "s[i, j] = −∞ if key j comes after query i",
            [[None if cell == -math.inf else cell for cell in row] for row in masked.tolist()],
            row="query",
            column="key",
            note="A token sees itself and earlier tokens. – stands for −∞.",
        ),
        step(
            "largest score",
            "m[i] = max over j of s[i, j]",
            largest,
            row="query",
            columns=["m"],
            note="Without the subtraction of m, exp would overflow for large scores. The weights stay the same.",
        ),
        step(
            "exponentials",
            "p[i, j] = exp(s[i, j] − m[i])",
            powers,
            row="query",
            column="key",
            example=f"p[{i}, {j}] = exp({number(scores[i, j])} − {term(largest[i, 0])}) = {number(powers[i, j])}",
        ),
        step(
            "sums",
            "l[i] = sum over j of p[i, j]",
            sums,
            row="query",
            columns=["l"],
            example=f"l[{i}] = {joined(powers[i])} = {number(sums[i, 0])}",
        ),
        step(
            "weights",
            "w[i, j] = p[i, j] / l[i]",
            probabilities,
            row="query",
            column="key",
            example=f"w[{i}, {j}] = {number(powers[i, j])} / {number(sums[i, 0])} = {number(probabilities[i, j])}",
            note="Each row adds up to 1.",
        ),
        step(
            "output",
            "o = w v",
            output,
            column="ch.",
            example=f"o[{i}, 0] = {dot(probabilities[i], v[:, 0])} = {number(output[i, 0])}",
        ),
    ]
    model = model_attention(q, k, v, causal=True)
    return Worked(
        "causal self-attention, one head",
        case,
        steps,
        [Check("attention of the PyTorch model", difference(output, model))],
    )
