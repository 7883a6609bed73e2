"""Depth and width."""

from __future__ import annotations

from llmbench.learn.choose.blueprint import Blueprint, even
from llmbench.learn.choose.candidate import Setting
from llmbench.learn.choose.decision import Alternative, Decision, Quality


def alternatives(blueprint: Blueprint, setting: Setting) -> list[Alternative]:
    """Compare the usual shape with models of twice and half its depth."""
    options: list[tuple[str, float, Quality, str]] = [
        (
            "usual",
            1.0,
            "first",
            "the loss hardly depends on the shape (Kaplan, arXiv 2001.08361, figure 5)",
        ),
        ("deeper", 2.0, "close", "as good or better after fine-tuning (Tay, arXiv 2109.10686)"),
        ("wider", 0.5, "loss", "worse after fine-tuning (Tay, arXiv 2109.10686)"),
    ]
    found: list[Alternative] = []
    for name, factor, quality, report in options:
        heads = max(4, 4 * round(blueprint.heads / factor**0.5 / 4))
        layers = even(blueprint.layers * (blueprint.heads / heads) ** 2)
        change = {"layers": layers, "heads": heads, "kv_heads": heads}
        label = f"{layers} layers × {heads * blueprint.head_dim:,} ({name})"
        if change not in [other.change for other in found]:
            found.append(Alternative(label, change, quality, report))
    return found


DECISION = Decision(
    question="how deep and how wide",
    columns=("kv_bytes_per_token", "token_s"),
    alternatives=alternatives,
    note="The cache grows with layers × width, and a deeper model has fewer channels per layer. Weights and FLOPs "
    "stay nearly the same.",
    command="llmbench params {model} --explain",
)
