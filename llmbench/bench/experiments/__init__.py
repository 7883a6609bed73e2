"""The experiments of `llmbench bench`. Importing this package imports no torch."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

from llmbench.errors import unknown

if TYPE_CHECKING:
    from llmbench.bench.experiments.experiment import Experiment

__all__ = ["EXPERIMENTS", "find_experiment"]

EXPERIMENTS: dict[str, str] = {
    "attention": "every attention kernel, over lengths, masks and passes",
    "norms": "LayerNorm and RMSNorm: plain, fused and compiled, alone and with the residual sum, over widths",
    "activations": "feed-forwards from ReLU to SwiGLU at equal parameters, plain and fused, over widths",
    "positions": "no positions, learned, sinusoidal, RoPE and ALiBi in one small model, over lengths",
    "heads": "MHA, GQA, MQA and MLA at equal hidden size: speed, cache, largest batch; prefill and decode",
    "moe": "a mixture by loop, grouped products and our kernel; against dense models; by balance; the router",
    "generate": "a whole decoder: first token, next token, answer; each step eager and as a CUDA graph",
    "train": "training steps: every implementation, recomputed, compiled; FSDP2 and tensor parallel under torchrun",
    "collectives": "all-reduce, all-gather, reduce-scatter and all-to-all under torchrun, over sizes",
    "textbook": "the claims of a textbook on speed and memory, and whether they hold on this machine",
}
"""Every experiment: a file or folder here with its `EXPERIMENT`, and one line that `--help` and the docs list."""


def find_experiment(name: str) -> Experiment:
    """The experiment of that name. Raises UnknownNameError with the nearest name."""
    if name not in EXPERIMENTS:
        raise unknown("experiment", name, EXPERIMENTS)
    experiment: Experiment = import_module(f"{__name__}.{name}").EXPERIMENT
    return experiment.named(name)
