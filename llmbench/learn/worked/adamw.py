"""AdamW: Adam with decoupled weight decay (Loshchilov and Hutter, arXiv 1711.05101, algorithm 2)."""

from __future__ import annotations

import torch

from llmbench.learn.worked.step import Case, Check, Worked, difference, draw, number, numbered, step, term

DEFAULT = Case(tokens=3, dim=4)
LEARNING_RATE, BETA1, BETA2, EPSILON, DECAY = 0.1, 0.9, 0.999, 1e-8, 0.1


def work(case: Case) -> Worked:
    """Update D weights in T steps, with drawn gradients."""
    T, D, seed = case
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
        m = BETA1 * m + (1 - BETA1) * g
        v = BETA2 * v + (1 - BETA2) * g.square()
        m_hat, v_hat = m / (1 - BETA1**t), v / (1 - BETA2**t)
        decayed = w * (1 - LEARNING_RATE * DECAY)
        update = LEARNING_RATE * m_hat / (v_hat.sqrt() + EPSILON)
        w = decayed - update
        steps += [
            step(
                f"step {t}: averages",
                "m' = β₁ m + (1 − β₁) g, v' = β₂ v + (1 − β₂) g²",
                torch.stack((m, v)),
                row="",
                rows=["m'", "v'"],
                columns=columns,
                example=f"m'[0] = {BETA1} × {term(old_m[0])} + {number(1 - BETA1)} × {term(g[0])} = {number(m[0])}",
                note=f"v'[0] = {BETA2} × {number(old_v[0])} + {number(1 - BETA2)} × {term(g[0])}² = {number(v[0])}",
            ),
            step(
                f"step {t}: bias correction",
                "m̂ = m' / (1 − β₁^t), v̂ = v' / (1 − β₂^t)",
                torch.stack((m_hat, v_hat)),
                row="",
                rows=["m̂", "v̂"],
                columns=columns,
                example=f"m̂[0] = {term(m[0])} / (1 − {BETA1} ^ {t}) = {number(m_hat[0])}",
                note="m and v begin at 0. The division removes this bias.",
            ),
            step(
                f"step {t}: new weights",
                "decayed = w (1 − η λ), update = η m̂ / (√v̂ + ε), w' = decayed − update",
                torch.stack((decayed, update, w)),
                row="",
                rows=["decayed", "update", "w'"],
                columns=columns,
                example=f"w'[0] = {term(old_w[0])} × (1 − {LEARNING_RATE} × {DECAY}) − {LEARNING_RATE} × "
                f"{term(m_hat[0])} / (√{number(v_hat[0])} + {EPSILON:.8f}) = {number(w[0])}",
                note="In step 1, every update is about η, whatever the size of its gradient." if t == 1 else "",
            ),
        ]
    parameter = torch.nn.Parameter(weights.clone())
    optimizer = torch.optim.AdamW([parameter], lr=LEARNING_RATE, betas=(BETA1, BETA2), eps=EPSILON, weight_decay=DECAY)
    for g in gradients:
        parameter.grad = g.clone()
        optimizer.step()
    settings = f"η {LEARNING_RATE}, β₁ {BETA1}, β₂ {BETA2}, ε {EPSILON:g}, λ {DECAY}"
    return Worked(
        f"AdamW, {settings}",
        case,
        steps,
        [Check("result of torch.optim.AdamW in fp64", difference(w, parameter.detach()))],
    )
