"""RMSNorm: x / √(mean(x²) + ε) · g (Zhang and Sennrich, arXiv 1910.07467, equation 4)."""

from __future__ import annotations

import torch

from llmbench.learn.worked.step import Case, Check, Worked, difference, draw, number, step, term
from llmbench.model.implementations.plain import STANDARD
from llmbench.model.norms import NormLayer
from llmbench.spec.model import Norm

DEFAULT = Case(tokens=3, dim=4)


def work(case: Case) -> Worked:
    """Normalise tokens. The first token has the odd numbers 1, 3, 5, …; the others are drawn."""
    T, D, seed = case
    generator = torch.Generator().manual_seed(seed)
    x = torch.cat((2.0 * torch.arange(D, dtype=torch.float64)[None] + 1, draw(generator, T - 1, D)))
    gain = 1 + draw(generator, D, scale=0.3)
    norm = Norm(kind="rmsnorm")
    squares = x.square()
    mean = squares.mean(-1, keepdim=True)
    root = torch.sqrt(mean + norm.eps)
    normed = x / root
    output = normed * gain
    centred = x - x.mean(-1, keepdim=True)
    layernorm = centred / torch.sqrt(centred.square().mean(-1, keepdim=True) + norm.eps)
    last = D - 1
    steps = [
        step("input", "x, the vectors of the tokens", x, column="ch."),
        step(
            "squares",
            "x²",
            squares,
            column="ch.",
            example=f"x²[0, {last}] = {term(x[0, last])} × {term(x[0, last])} = {number(squares[0, last])}",
        ),
        step(
            "mean square",
            "ms = sum of x² / D",
            mean,
            columns=["ms"],
            example=f"ms[0] = ({' + '.join(map(number, squares[0]))}) / {D} = {number(mean[0, 0])}",
        ),
        step(
            "rms",
            f"rms = √(ms + ε), ε = {norm.eps:.5f}",
            root,
            columns=["rms"],
            example=f"rms[0] = √({number(mean[0, 0])} + {norm.eps:.5f}) = {number(root[0, 0])}",
        ),
        step(
            "normalised",
            "n = x / rms",
            normed,
            column="ch.",
            example=f"n[0, {last}] = {term(x[0, last])} / {number(root[0, 0])} = {number(normed[0, last])}",
            note="The mean square of each row is now 1, apart from ε.",
        ),
        step("gain", "g, one trained factor per channel", gain[None], row="", rows=["g"], column="ch."),
        step(
            "output",
            "y = n g",
            output,
            column="ch.",
            example=f"y[0, {last}] = {term(normed[0, last])} × {term(gain[last])} = {number(output[0, last])}",
        ),
        step(
            "LayerNorm, for comparison",
            "(x − mean(x)) / √(variance(x) + ε)",
            layernorm,
            column="ch.",
            note="LayerNorm also subtracts the mean. RMSNorm leaves the mean in the vector, and needs one sum less.",
        ),
    ]
    layer = NormLayer(D, norm).double()
    with torch.no_grad():
        assert layer.weight is not None
        layer.weight.copy_(gain)
        model = layer(x, STANDARD)
    return Worked("RMSNorm", case, steps, [Check("norm layer of the PyTorch model", difference(output, model))])
