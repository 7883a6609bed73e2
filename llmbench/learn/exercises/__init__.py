"""Exercises: accounting questions, which the sizing code answers, and functions, which are checked against fp64.

An exercise is one file with `EXERCISE`, and one line in `EXERCISES`. The files import torch in functions only.
"""

from __future__ import annotations

from importlib import import_module

from llmbench.errors import unknown
from llmbench.learn.exercises.function import Function
from llmbench.learn.exercises.question import Question

__all__ = ["EXERCISES", "Exercise", "load_exercise"]

Exercise = Question | Function

EXERCISES = {
    "parameters": "accounting.parameters",
    "moe-active": "accounting.moe_active",
    "forward-flops": "accounting.forward_flops",
    "attention-share": "accounting.attention_share",
    "attention-share-long": "accounting.attention_share_long",
    "score-bytes": "accounting.score_bytes",
    "kv-cache": "accounting.kv_cache",
    "users-that-fit": "accounting.users_that_fit",
    "decode-time": "accounting.decode_time",
    "training-states": "accounting.training_states",
    "largest-batch": "accounting.largest_batch",
    "lora-parameters": "accounting.lora_parameters",
    "training-days": "accounting.training_days",
    "mfu": "accounting.mfu",
    "layernorm": "functions.layernorm",
    "rmsnorm": "functions.rmsnorm",
    "sinusoidal-positions": "functions.sinusoidal_positions",
    "rope": "functions.rope",
    "alibi-slopes": "functions.alibi_slopes",
    "causal-attention": "functions.causal_attention",
    "gqa-attention": "functions.gqa_attention",
    "flash-attention": "functions.flash_attention",
    "swiglu": "functions.swiglu",
    "moe-routing": "functions.moe_routing",
    "cross-entropy": "functions.cross_entropy",
    "adamw-step": "functions.adamw_step",
}
"""The module of each exercise. The function of a student has the name of its exercise, with `_` for `-`."""


def load_exercise(name: str) -> Exercise:
    """Return the exercise with this name. `_` stands for `-`. Raises UnknownNameError for an unknown name."""
    key = name.replace("_", "-")
    if key not in EXERCISES:
        raise unknown("exercise", name, EXERCISES)
    exercise: Exercise = import_module(f"llmbench.learn.exercises.{EXERCISES[key]}").EXERCISE
    return exercise
