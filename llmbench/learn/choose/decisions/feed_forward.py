"""The feed-forward."""

from __future__ import annotations

from llmbench.learn.choose.blueprint import Blueprint
from llmbench.learn.choose.candidate import Setting
from llmbench.learn.choose.decision import Alternative, Decision


def alternatives(blueprint: Blueprint, setting: Setting) -> list[Alternative]:
    """Compare SwiGLU and a dense feed-forward with GELU."""
    return [
        Alternative(
            "SwiGLU", {"gated": True}, "first", "better than GELU at equal parameters (Shazeer, arXiv 2002.05202)"
        ),
        Alternative("GELU", {"gated": False}, "close", "slightly worse than SwiGLU (Shazeer, arXiv 2002.05202)"),
    ]


DECISION = Decision(
    question="which feed-forward",
    columns=("width", "train_flops_per_token", "activation_bytes"),
    alternatives=alternatives,
    note="SwiGLU has three matrices, of 2/3 of the width. At equal parameters, its FLOPs and its saved activations "
    "are those of GELU.",
    command="llmbench memory {model} --seq {context}",
)
