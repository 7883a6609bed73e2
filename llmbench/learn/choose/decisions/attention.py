"""The implementation of attention."""

from __future__ import annotations

from llmbench.learn.choose.blueprint import Blueprint
from llmbench.learn.choose.candidate import Setting
from llmbench.learn.choose.decision import Alternative, Decision


def alternatives(blueprint: Blueprint, setting: Setting) -> list[Alternative]:
    """Compare flash attention and attention that stores its scores."""
    return [
        Alternative("flash", {"flash": True}, "first", "exact: the same results (Dao, arXiv 2205.14135)"),
        Alternative("standard", {"flash": False}, "close", "the formula itself: the same results"),
    ]


DECISION = Decision(
    question="is flash attention needed in training",
    columns=("activation_bytes", "train_peak_bytes"),
    alternatives=alternatives,
    note="Standard attention stores the scores of all (query, key) pairs for the backward pass. They grow with the "
    "square of the length.",
    command="llmbench memory {model} --seq {context} --kernels standard",
)
