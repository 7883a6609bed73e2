"""Dense or a mixture of experts."""

from __future__ import annotations

from llmbench.learn.choose.blueprint import Blueprint
from llmbench.learn.choose.candidate import Setting
from llmbench.learn.choose.decision import Alternative, Decision


def alternatives(blueprint: Blueprint, setting: Setting) -> list[Alternative]:
    """Compare a dense model with mixtures that have the same number of parameters in total."""
    loss = "the loss falls with the parameters that a token uses (Ludziejewski, arXiv 2502.05172)"
    report = "can be better at equal memory and equal training FLOPs (Ludziejewski, arXiv 2502.05172)"
    return [
        Alternative("dense", {"experts": 0, "per_token": 0}, "first", loss),
        Alternative("8 experts, 2 per token", {"experts": 8, "per_token": 2}, "close", report),
        Alternative("64 experts, 8 per token", {"experts": 64, "per_token": 8}, "close", report),
    ]


DECISION = Decision(
    question="dense or a mixture of experts",
    columns=("active_parameters", "train_flops_per_token", "token_s"),
    alternatives=alternatives,
    note="All experts are in memory, so users and caches change little. FLOPs and the bytes of one token shrink. "
    "With many users, a step reads the weights of all experts.",
    command="llmbench flops {model} --phase train --seq {context}",
)
