"""Rotary position embedding: pairs of channels are rotated by position × frequency (Su et al., arXiv 2104.09864)."""

from __future__ import annotations

import torch
from torch import Tensor

from llmbench.errors import LLMBenchError
from llmbench.learn.worked.step import Case, Check, Worked, difference, dot, draw, number, numbered, step, term
from llmbench.model.positions import inverse_frequencies, rotate
from llmbench.spec.position import Rope, rope_frequency

DEFAULT = Case(tokens=4, dim=4)


def work(case: Case) -> Worked:
    """Rotate one query and one key to several positions, and compute all scores."""
    T, D, seed = case
    if D % 2:
        raise LLMBenchError(f"--dim {D}: RoPE rotates pairs of channels", hint="choose an even number")
    rope, half = Rope(), D // 2
    generator = torch.Generator().manual_seed(seed)
    q, k = draw(generator, 2, D)
    frequency = rope_frequency(rope.theta, torch.arange(half, dtype=torch.float64), D)
    angles = torch.arange(T, dtype=torch.float64)[:, None] * frequency
    cos, sin = angles.cos(), angles.sin()

    def rotated(x: Tensor) -> Tensor:
        first, second = x[:half], x[half:]
        return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1)

    queries, keys = rotated(q), rotated(k)
    scores = queries @ keys.T
    distances = torch.arange(T)[:, None] - torch.arange(T)
    spread = [[float(scores[distances == d].max() - scores[distances == d].min())] for d in range(T)]
    by_distance = [[float(scores[d, 0]), float(scores[0, d]), *gap] for d, gap in enumerate(spread)]
    p, pairs = T - 1, numbered("pair", half)
    base = f"{rope.theta:,.0f}"
    rotation = f"{term(q[0])} × {term(cos[p, 0])} − {term(q[half])} × {term(sin[p, 0])}"
    steps = [
        step(
            "input",
            "one query and one key, before their rotation",
            torch.stack((q, k)),
            row="",
            rows=["q", "k"],
            column="ch.",
            note=f"Pair i has the channels i and i + {half} (GPT-NeoX, LLaMA).",
        ),
        step(
            "frequencies",
            f"θ[i] = {base}^(−2i / D)",
            frequency[None],
            row="",
            rows=["θ"],
            columns=pairs,
            example=f"θ[{half - 1}] = {base} ^ (−2 × {half - 1} / {D}) = {number(frequency[-1])}",
            note="Pair 0 turns by one radian per position. Later pairs turn more slowly.",
        ),
        step(
            "angles",
            "a[p, i] = p θ[i]",
            angles,
            row="position",
            columns=pairs,
            example=f"a[{p}, {half - 1}] = {p} × {number(frequency[-1])} = {number(angles[p, -1])}",
        ),
        step("cosines", "cos(a[p, i])", cos, row="position", columns=pairs),
        step("sines", "sin(a[p, i])", sin, row="position", columns=pairs),
        step(
            "rotated query",
            f"q'[i] = q[i] cos − q[i + {half}] sin, q'[i + {half}] = q[i + {half}] cos + q[i] sin",
            queries,
            row="position",
            column="ch.",
            example=f"q'[{p}, 0] = {rotation} = {number(queries[p, 0])}",
        ),
        step("rotated key", "the same rotation of k", keys, row="position", column="ch."),
        step(
            "scores",
            "s[m, n] = q'[m]·k'[n]",
            scores,
            row="m",
            columns=numbered("n =", T),
            example=f"s[{p}, 0] = {dot(queries[p], keys[0])} = {number(scores[p, 0])}",
            note="Every diagonal has one value. If both vectors turn by the same angle, their product stays the same. "
            "So the score depends only on n − m.",
        ),
        step(
            "scores by distance",
            "d = |n − m|",
            by_distance,
            row="d",
            columns=["n = m − d", "n = m + d", "spread"],
            note="spread: the difference of the scores with n = m − d. It is 0, or as small as rounding.",
        ),
    ]
    model = rotate(q.expand(1, 1, T, D), (cos[None, None], sin[None, None]), interleaved=False)[0, 0]
    table, _ = inverse_frequencies(rope, D, seq_len=T, max_positions=None, device=torch.device("cpu"))
    return Worked(
        "rotary positions (RoPE)",
        case,
        steps,
        [
            Check("rotation of the PyTorch model", difference(queries, model)),
            Check("frequencies of the PyTorch model (in fp32)", difference(frequency, table)),
        ],
    )
