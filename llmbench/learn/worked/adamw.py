"""AdamW: Adam with decoupled weight decay (Loshchilov and Hutter, arXiv 1711.05101, algorithm 2)."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from llmbench.learn.worked.step import Case, Check, Worked, difference, draw, number, numbered, step, term

DEFAULT = Case(tokens=3, dim=4)


class Settings(NamedTuple):
    """The learning rate η, β₁, β₂, ε and the weight decay λ."""

    lr: float = 0.1
    beta1: float = 0.9
    beta2: float = 0.999
    eps: float = 1e-8
    decay: float = 0.1


class Update(NamedTuple):
    """What one step computes: averages m and v, the corrected averages, the decayed weights, the update, and w."""

    m: Tensor
    v: Tensor
    m_hat: Tensor
    v_hat: Tensor
    decayed: Tensor
    update: Tensor
    w: Tensor


def update(w: Tensor, g: Tensor, m: Tensor, v: Tensor, t: int, settings: Settings) -> Update:
    """Compute step t, from 1, for weights w, gradients g, and the averages m and v before the step."""
    lr, beta1, beta2, eps, decay = settings
    m = beta1 * m + (1 - beta1) * g
    v = beta2 * v + (1 - beta2) * g.square()
    m_hat, v_hat = m / (1 - beta1**t), v / (1 - beta2**t)
    decayed = w * (1 - lr * decay)
    change = lr * m_hat / (v_hat.sqrt() + eps)
    return Update(m, v, m_hat, v_hat, decayed, change, decayed - change)


def work(case: Case) -> Worked:
    """Update D weights in T steps, with drawn gradients."""
    T, D, seed = case
    settings = Settings()
    lr, beta1, beta2, eps, decay = settings
    generator = torch.Generator().manual_seed(seed)
    weights, gradients = draw(generator, D), draw(generator, T, D)
    w, m, v = weights, torch.zeros_like(weights), torch.zeros_like(weights)
    columns = numbered("w", D)
    number_of_step = [str(t + 1) for t in range(T)]
    steps = [
        step("weights", "w before the first step", w[None], row="", rows=["w"], columns=columns),
        step(
            "gradients",
            "g, one row per step",
            gradients,
            row="step",
            rows=number_of_step,
            columns=columns,
        ),
    ]
    for t, g in enumerate(gradients, start=1):
        old_w, old_m, old_v = w, m, v
        m, v, m_hat, v_hat, decayed, change, w = update(w, g, m, v, t, settings)
        steps += [
            step(
                f"step {t}: averages",
                "m' = β₁ m + (1 − β₁) g, v' = β₂ v + (1 − β₂) g²",
                torch.stack((m, v)),
                row="",
                rows=["m'", "v'"],
                columns=columns,
                example=f"m'[0] = {beta1} × {term(old_m[0])} + {number(1 - beta1)} × {term(g[0])} = {number(m[0])}",
                note=f"v'[0] = {beta2} × {number(old_v[0])} + {number(1 - beta2)} × {term(g[0])}² = {number(v[0])}",
            ),
            step(
                f"step {t}: bias correction",
                "m̂ = m' / (1 − β₁^t), v̂ = v' / (1 − β₂^t)",
                torch.stack((m_hat, v_hat)),
                row="",
                rows=["m̂", "v̂"],
                columns=columns,
                example=f"m̂[0] = {term(m[0])} / (1 − {beta1} ^ {t}) = {number(m_hat[0])}",
                note="m and v begin at 0. The division removes this bias.",
            ),
            step(
                f"step {t}: new weights",
                "decayed = w (1 − η λ), update = η m̂ / (√v̂ + ε), w' = decayed − update",
                torch.stack((decayed, change, w)),
                row="",
                rows=["decayed", "update", "w'"],
                columns=columns,
                example=f"w'[0] = {term(old_w[0])} × (1 − {lr} × {decay}) − {lr} × "
                f"{term(m_hat[0])} / (√{number(v_hat[0])} + {eps:.8f}) = {number(w[0])}",
                note="In step 1, every update is about η, whatever the size of its gradient." if t == 1 else "",
            ),
        ]
    parameter = torch.nn.Parameter(weights.clone())
    optimizer = torch.optim.AdamW([parameter], lr=lr, betas=(beta1, beta2), eps=eps, weight_decay=decay)
    for g in gradients:
        parameter.grad = g.clone()
        optimizer.step()
    title = f"η {lr}, β₁ {beta1}, β₂ {beta2}, ε {eps:g}, λ {decay}"
    return Worked(
        f"AdamW, {title}",
        case,
        steps,
        [Check("result of torch.optim.AdamW in fp64", difference(w, parameter.detach()))],
        counts="steps",
    )
