"""Sliding windows."""

from __future__ import annotations

from llmbench.learn.choose.blueprint import Blueprint
from llmbench.learn.choose.candidate import Setting
from llmbench.learn.choose.decision import Alternative, Decision


def alternatives(blueprint: Blueprint, setting: Setting) -> list[Alternative]:
    """Compare full attention with windows in some or all layers. A window must be shorter than the context."""
    found = [
        Alternative("full attention", {"local": 0, "window": None}, "first", "each token reaches every other token")
    ]
    mixed = "the perplexity hardly changes (Gemma 3 report, arXiv 2503.19786)"
    for local, window in ((1, 4096), (5, 1024)):
        if window < setting.context and local < blueprint.layers:
            name = f"{local} of {local + 1} layers: window {window:,}"
            found.append(Alternative(name, {"local": local, "window": window}, "close", mixed))
    if setting.context > 4096:
        found.append(
            Alternative(
                "all layers: window 4,096",
                {"local": 0, "window": 4096},
                "loss",
                "far tokens are reached through several layers only (Jiang, arXiv 2310.06825)",
            )
        )
    return found


DECISION = Decision(
    question="sliding windows",
    columns=("cache_bytes", "score_share"),
    alternatives=alternatives,
    note="A layer with a window stores only the newest tokens, and computes fewer scores.",
    command="llmbench kvcache {model} --seq {context}",
)
