"""Position encoding."""

from __future__ import annotations

from llmbench.learn.choose.blueprint import Blueprint
from llmbench.learn.choose.candidate import Setting
from llmbench.learn.choose.decision import Alternative, Decision

BASES = tuple(factor * 10**power for power in range(4, 12) for factor in (1, 5))
"""The bases of RoPE that are tried."""


def base_for(context: int) -> int:
    """Return the smallest base of BASES that is large enough for a context length.

    The lower bound 0.0424 · tokens^1.628 is the fit of Men et al., arXiv 2405.14591, figure 1.
    """
    bound = 0.0424 * context**1.628
    return next((base for base in BASES if base >= bound), BASES[-1])


def alternatives(blueprint: Blueprint, setting: Setting) -> list[Alternative]:
    """Compare RoPE, ALiBi and learned positions."""
    base = base_for(setting.context)
    bound = 0.0424 * setting.context**1.628
    return [
        Alternative(
            f"RoPE, base {base:,}",
            {"positions": "rope", "theta": float(base)},
            "first",
            f"what most models use; its base must be at least {bound:,.0f} for this context (a fit: Men, arXiv "
            "2405.14591)",
        ),
        Alternative(
            "ALiBi",
            {"positions": "alibi"},
            "close",
            "a flat loss past the training length (Press, arXiv 2108.12409)",
        ),
        Alternative(
            "learned table",
            {"positions": "learned"},
            "loss",
            "ends at its last row (Press, arXiv 2108.12409, section 1)",
        ),
    ]


DECISION = Decision(
    question="which position encoding",
    columns=("position_parameters", "longest_position"),
    alternatives=alternatives,
    note="A learned table costs context × hidden parameters, which the feed-forward loses. RoPE and ALiBi cost none.",
    command="llmbench params {model}",
)
