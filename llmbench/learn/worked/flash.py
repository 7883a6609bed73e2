"""Flash attention's online softmax: one block of keys after another (Milakov and Gimelshein, arXiv 1805.02867; Dao et
al., arXiv 2205.14135, algorithm 1)."""

from __future__ import annotations

import math

import torch

from llmbench.learn.worked.reference import model_attention
from llmbench.learn.worked.step import Case, Check, Step, Worked, difference, dot, draw, joined, number, step, term

DEFAULT = Case(tokens=6, dim=4)
BLOCK = 2
"""The number of keys in a block."""


def work(case: Case) -> Worked:
    """Compute the output of one query over T keys, one block after another."""
    T, D, seed = case
    generator = torch.Generator().manual_seed(seed)
    q, k, v = draw(generator, 1, D), draw(generator, T, D), draw(generator, T, D)
    scores = (q @ k.T / math.sqrt(D))[0]
    standard = scores.softmax(-1)
    steps = [
        step("query", "q, one query that sees all keys", q, row="", rows=["q"], column="ch."),
        step("keys", "k", k, row="key", column="ch."),
        step("values", "v", v, row="key", column="ch."),
    ]
    largest, total, output = v.new_tensor(-math.inf), v.new_zeros(()), v.new_zeros(D)
    wrong = torch.zeros_like(output)
    for block, start in enumerate(range(0, T, BLOCK)):
        keys = range(start, min(start + BLOCK, T))
        own, values = scores[start : keys.stop], v[start : keys.stop]
        new = torch.maximum(largest, own.max())
        factor = torch.exp(largest - new)
        powers = torch.exp(own - new)
        first = f"s[{start}] = ({dot(q[0], k[start])}) / √{D} = {number(own[0])}"
        steps.append(
            step(
                f"block {block}: scores",
                "s[j] = q·k[j] / √D, m' = max(m, s), p[j] = exp(s[j] − m')",
                torch.stack((own, powers)),
                row="",
                rows=["s", "p"],
                columns=[f"key {key}" for key in keys],
                example=first,
                note=f"m' = {number(new)}, p[{start}] = exp({number(own[0])} − {term(new)}) = {number(powers[0])}",
            )
        )
        more = total * factor + powers.sum()
        added = output * factor + powers @ values
        steps.append(_block_update(block, (largest, total, output), (new, more, added), factor, powers))
        largest, total, output = new, more, added
        wrong = wrong + own.softmax(-1) @ values
    result = output / total
    channels = [f"ch. {index}" for index in range(D)]
    steps += [
        step(
            "output",
            "o = a / l, once, after the last block",
            result[None],
            row="",
            rows=["o"],
            columns=channels,
            example=f"o[0] = {term(output[0])} / {number(total)} = {number(result[0])}",
        ),
        step(
            "standard attention",
            "softmax over all keys at once, then the product with v",
            (standard @ v)[None],
            row="",
            rows=["o"],
            columns=channels,
            example=f"o[0] = {dot(standard, v[:, 0])} = {number((standard @ v)[0])}",
            note=f"Both results are equal. The online form had at most {min(BLOCK, T)} scores in memory, not {T}.",
        ),
        step(
            "a common error",
            "the sum of one softmax per block, without the factors f",
            wrong[None],
            row="",
            rows=["wrong"],
            columns=channels,
            note="Each block then counts with weight 1, so the weights add up to the number of blocks, not to 1.",
        ),
    ]
    return Worked(
        f"flash attention: online softmax in blocks of {BLOCK} keys",
        case,
        steps,
        [
            Check("standard attention above", difference(result, standard @ v)),
            Check("attention of the PyTorch model", difference(result, model_attention(q, k, v, causal=False)[0])),
        ],
    )


State = tuple[torch.Tensor, torch.Tensor, torch.Tensor]
"""The largest score m, the sum l and the accumulator a [D] after a block."""


def _block_update(block: int, before: State, after: State, factor: torch.Tensor, powers: torch.Tensor) -> Step:
    (m, total, _), (new, more, added) = before, after
    old_values = [None if block == 0 else float(m), None, float(total), *before[2].tolist()]
    new_values = [float(new), float(factor), float(more), *added.tolist()]
    old = f"{number(total)} × {number(factor)} + " if block else ""
    correction = (
        f"f = exp({number(m)} − {term(new)}) = {number(factor)} corrects what earlier blocks added with the old m."
    )
    return step(
        f"block {block}: update",
        "f = exp(m − m'), l' = l f + Σ p, a' = a f + p v",
        list(zip(old_values, new_values, strict=True)),
        row="",
        rows=["m", "f", "l", *(f"a[{channel}]" for channel in range(len(added)))],
        columns=["before", "after"],
        example=f"l' = {old}{joined(powers)} = {number(more)}",
        note=correction if block else "The first block has nothing to rescale.",
    )
