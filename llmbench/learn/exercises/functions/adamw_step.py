"""One step of AdamW."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from llmbench.learn.exercises.function import Function

if TYPE_CHECKING:
    from torch import Tensor

    from llmbench.kernels.kernel import Inputs, Random


def reference(
    w: Tensor, g: Tensor, m: Tensor, v: Tensor, t: int, lr: float, beta1: float, beta2: float, eps: float, decay: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the new weights and averages, as the worked example computes them."""
    from llmbench.learn.worked.adamw import Settings, update

    new = update(w, g, m, v, t, Settings(lr, beta1, beta2, eps, decay))
    return new.w, new.m, new.v


def cases(random: Random) -> Iterator[tuple[str, Inputs]]:
    """Yield first and late steps, with and without decay, and zero gradients."""
    for label, shape, t, decay, scale in (
        ("first step", (4,), 1, 0.0, 1.0),
        ("first step with weight decay", (3, 4), 1, 0.1, 1.0),
        ("step 10", (3, 4), 10, 0.1, 1.0),
        ("step 1000, large decay", (5,), 1000, 1.0, 1.0),
        ("gradient 0", (4,), 3, 0.1, 0.0),
        ("small gradients, for which eps matters", (6,), 2, 0.01, 1e-7),
    ):
        w, g, m = (random.normal(*shape, scale=size) for size in (1.0, scale, scale))
        v = 0.5 * random.normal(*shape, scale=scale).square()
        if t == 1:
            m, v = 0 * m, 0 * v
        settings = {"t": t, "lr": 0.01, "beta1": 0.9, "beta2": 0.95, "eps": 1e-8, "decay": decay}
        yield label, {"w": w, "g": g, "m": m, "v": v, **settings}


EXERCISE = Function(
    summary="one step of AdamW",
    signature="adamw_step(w, g, m, v, t, lr, beta1, beta2, eps, decay)",
    arguments=(
        "w, g, m, v: weights, gradients and both averages, of one shape",
        "t: the number of the step, from 1",
        "lr, beta1, beta2, eps, decay: numbers",
    ),
    returns="a tuple of three new tensors: w, m, v",
    formula="m' = β₁ m + (1 − β₁) g; v' = β₂ v + (1 − β₂) g²; m̂ = m' / (1 − β₁^t); v̂ = v' / (1 − β₂^t); w' = w (1 "
    "− lr × decay) − lr m̂ / (√v̂ + eps)",
    source="Loshchilov and Hutter, arXiv 1711.05101",
    hint="The decay acts on the weights, not on the gradient. eps is outside the root. `llmbench worked adamw` shows "
    "every number.",
    reference=reference,
    cases=cases,
)
