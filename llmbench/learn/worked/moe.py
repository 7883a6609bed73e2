"""A mixture of experts: the router selects two of four small experts per token (Shazeer et al., arXiv 1701.06538; load
and balance loss: Fedus et al., arXiv 2101.03961, equations 4 to 6)."""

from __future__ import annotations

import torch

from llmbench.learn.worked.step import Case, Check, Worked, difference, dot, draw, joined, number, numbered, step, term
from llmbench.model.ffn import MixtureLayer
from llmbench.model.implementations.plain import STANDARD
from llmbench.spec.ffn import MoE, Router

DEFAULT = Case(tokens=3, dim=4)
EXPERTS, TOP_K, WIDTH = 4, 2, 2
"""The number of experts, of experts per token, and of hidden channels of an expert."""


def work(case: Case) -> Worked:
    """Route T tokens, compute their experts, and add the weighted outputs."""
    T, D, seed = case
    generator = torch.Generator().manual_seed(seed)
    x, router = _drawn(generator, T, D)
    up, down = draw(generator, EXPERTS, WIDTH, D, scale=0.7), draw(generator, EXPERTS, D, WIDTH, scale=0.7)
    logits = x @ router.T
    probabilities = logits.softmax(-1)
    top, chosen = probabilities.topk(TOP_K, dim=-1)
    weights = top / top.sum(-1, keepdim=True)
    pairs = [(token, place, int(chosen[token, place])) for token in range(T) for place in range(TOP_K)]
    hidden = torch.stack([(up[expert] @ x[token]).relu() for token, _, expert in pairs])
    outputs = torch.stack([down[expert] @ row for (_, _, expert), row in zip(pairs, hidden, strict=True)])
    combined = (outputs.view(T, TOP_K, D) * weights[..., None]).sum(1)
    load = torch.bincount(chosen.flatten(), minlength=EXPERTS).double()
    share, mean = load / chosen.numel(), probabilities.mean(0)
    balance = EXPERTS * (share * mean).sum()
    i = T - 1
    first, second = (int(expert) for expert in chosen[i])
    labels = [f"{token} → {expert}" for token, _, expert in pairs]
    experts = numbered("expert", EXPERTS)
    products = " + ".join(f"{number(f)} × {number(p)}" for f, p in zip(share, mean, strict=True))
    steps = [
        step("input", "x, the vectors of the tokens", x, column="ch."),
        step("router", "R, one row per expert", router, row="expert", column="ch."),
        step(
            "logits",
            "z = x Rᵀ",
            logits,
            columns=experts,
            example=f"z[{i}, 0] = {dot(x[i], router[0])} = {number(logits[i, 0])}",
        ),
        step(
            "probabilities",
            "p = softmax over the experts of z",
            probabilities,
            columns=experts,
            example=f"p[{i}, 0] = exp({number(logits[i, 0])}) / ("
            + " + ".join(f"exp({number(z)})" for z in logits[i])
            + f") = {number(probabilities[i, 0])}",
        ),
        step(
            "selection",
            f"the {TOP_K} experts with the largest p",
            chosen.double(),
            columns=["first", "second"],
            note=f"The other {EXPERTS - TOP_K} experts compute nothing for the token.",
        ),
        step(
            "weights",
            "w = p of the selected experts, divided by their sum",
            weights,
            columns=["first", "second"],
            example=f"w[{i}, 0] = {number(top[i, 0])} / ({joined(top[i])}) = {number(weights[i, 0])}",
        ),
        step(
            "first matrices",
            "U, two rows per expert",
            up.flatten(0, 1),
            row="e, row",
            rows=[f"{expert}, {row}" for expert in range(EXPERTS) for row in range(WIDTH)],
            column="ch.",
        ),
        step(
            "second matrices",
            "V, two columns per expert, printed as rows",
            down.transpose(1, 2).flatten(0, 1),
            row="e, column",
            rows=[f"{expert}, {row}" for expert in range(EXPERTS) for row in range(WIDTH)],
            column="ch.",
        ),
        step(
            "hidden channels",
            "h = max(0, U x), of the selected experts",
            hidden,
            row="pair",
            rows=labels,
            column="h",
            example=f"h[{i} → {first}, 0] = max(0, {dot(up[first, 0], x[i])}) = {number(hidden[i * TOP_K, 0])}",
        ),
        step(
            "outputs of experts",
            "e = V h",
            outputs,
            row="pair",
            rows=labels,
            column="ch.",
            example=f"e[{i} → {first}, 0] = {dot(down[first, 0], hidden[i * TOP_K])} = {number(outputs[i * TOP_K, 0])}",
        ),
        step(
            "output",
            "y = Σ w e",
            combined,
            column="ch.",
            example=f"y[{i}, 0] = {number(weights[i, 0])} × {term(outputs[i * TOP_K, 0])} + {number(weights[i, 1])} × "
            f"{term(outputs[i * TOP_K + 1, 0])} = {number(combined[i, 0])}",
            note=f"Token {i}: experts {first} and {second}.",
        ),
        step(
            "load",
            "f = share of the (token, expert) pairs, P = mean of p over the tokens",
            torch.stack((load, share, mean)),
            row="",
            rows=["pairs", "f", "P"],
            columns=experts,
            note=f"An even load would be {number(len(pairs) / EXPERTS)} pairs per expert.",
        ),
        step(
            "balance loss",
            "E Σ f P, which is 1 if the load is even",
            [[float(balance)]],
            row="",
            rows=["loss"],
            columns=["value"],
            example=f"loss = {EXPERTS} × ({products}) = {number(balance)}",
        ),
    ]
    model = _model_output(x, router, up, down)
    return Worked(
        f"mixture of {EXPERTS} experts, {TOP_K} per token",
        case,
        steps,
        [Check("mixture of the PyTorch model (its router computes in fp32)", difference(combined, model))],
    )


def _drawn(generator: torch.Generator, tokens: int, dim: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return tokens [T, D] and router [E, D] with which no selection is a tie, which rounding would decide."""
    while True:
        x, router = draw(generator, tokens, dim), draw(generator, EXPERTS, dim, scale=0.7)
        top = (x @ router.T).topk(TOP_K + 1, dim=-1).values
        if bool((top[:, TOP_K - 1] - top[:, TOP_K] > 0.005).all()):  # the logits are multiples of 0.01
            return x, router


def _model_output(x: torch.Tensor, router: torch.Tensor, up: torch.Tensor, down: torch.Tensor) -> torch.Tensor:
    moe = MoE(
        num_experts=EXPERTS,
        num_experts_per_tok=TOP_K,
        intermediate_size=WIDTH,
        activation="relu",
        gated=False,
        router=Router(normalize=True),
    )
    layer = MixtureLayer(x.shape[-1], moe).double()
    with torch.no_grad():
        layer.router.weight.copy_(router)
        layer.experts.up_proj.copy_(up)
        layer.experts.down_proj.copy_(down)
        out: torch.Tensor = layer(x[None], STANDARD)[0]
    return out
