"""The number of KV heads."""

from __future__ import annotations

from llmbench.learn.choose.blueprint import Blueprint
from llmbench.learn.choose.candidate import Setting
from llmbench.learn.choose.decision import Alternative, Decision


def alternatives(blueprint: Blueprint, setting: Setting) -> list[Alternative]:
    """Compare MHA, GQA with 8 and 4 KV heads, and MQA."""
    heads = blueprint.heads
    reports = {
        8: "a quality close to MHA (Ainslie, arXiv 2305.13245)",
        4: "between 8 KV heads and MQA; Qwen2.5 7B has 4 (arXiv 2412.15115)",
    }
    best = "the quality that others are compared with"
    found = [Alternative(f"MHA, {heads} KV heads", {"kv_heads": heads}, "first", best)]
    for groups, report in reports.items():
        if groups < heads and heads % groups == 0:
            found.append(Alternative(f"GQA, {groups} KV heads", {"kv_heads": groups}, "close", report))
    found.append(Alternative("MQA, 1 KV head", {"kv_heads": 1}, "loss", "can lose quality (Ainslie, arXiv 2305.13245)"))
    return found


DECISION = Decision(
    question="how many KV heads",
    columns=("kv_bytes_per_token", "cache_bytes", "width"),
    alternatives=alternatives,
    note="Fewer KV heads have smaller matrices, so the feed-forward is wider at the same number of parameters.",
    command="llmbench kvcache {model} --seq {context}",
)
