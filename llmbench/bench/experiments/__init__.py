"""The experiments of `llmbench bench`. Importing this package imports no torch."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

from llmbench.errors import unknown

if TYPE_CHECKING:
    from llmbench.bench.experiments.experiment import Experiment

__all__ = ["EXPERIMENTS", "find_experiment"]

EXPERIMENTS: dict[str, str] = {
    "attention": "all attention kernels, over sequence lengths, masks and passes",
    "norms": "LayerNorm and RMSNorm: plain, fused and compiled, alone and with the residual sum, over widths",
    "activations": "feed-forwards from ReLU to SwiGLU with equal parameter counts, plain and fused, over widths",
    "positions": "a small model with each position encoding: none, learned, sinusoidal, RoPE, ALiBi",
    "heads": "MHA, GQA, MQA and MLA at equal hidden size, in prefill and decoding: speed, cache, largest batch",
    "moe": "mixtures of experts in three implementations, compared with dense feed-forwards",
    "generate": "text generation: first token, next token and whole answer, eager and as a CUDA graph",
    "train": "training steps: plain, with recomputation, compiled; under torchrun, with FSDP2 or tensor parallelism",
    "collectives": "all-reduce, all-gather, reduce-scatter and all-to-all under torchrun, over tensor sizes",
    "textbook": "a textbook's claims on speed and memory, and whether they hold on this machine",
}
"""The description of every experiment, by name. `--help` and the docs show it. For each name, this folder has a file or
folder of the same name that defines `EXPERIMENT`."""


def find_experiment(name: str) -> Experiment:
    """Return the experiment with this name. Raises UnknownNameError, which suggests the most similar name."""
    if name not in EXPERIMENTS:
        raise unknown("experiment", name, EXPERIMENTS)
    experiment: Experiment = import_module(f"{__name__}.{name}").EXPERIMENT
    return experiment.named(name)
