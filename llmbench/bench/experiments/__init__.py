"""The experiments by name; a file is loaded when it is asked for."""

from __future__ import annotations

from importlib import import_module

from llmbench.bench.experiments.experiment import Experiment
from llmbench.errors import unknown

__all__ = ["EXPERIMENTS", "find_experiment"]

EXPERIMENTS = (
    "attention",
    "norms",
    "activations",
    "positions",
    "heads",
    "moe",
    "generate",
    "train",
    "collectives",
    "textbook",
)
"""Every experiment: a file of `llmbench/bench/experiments` with `EXPERIMENT` at its end."""


def find_experiment(name: str) -> Experiment:
    """The experiment of that name. Raises UnknownNameError with the nearest."""
    if name not in EXPERIMENTS:
        raise unknown("experiment", name, EXPERIMENTS)
    found: Experiment = import_module(f"llmbench.bench.experiments.{name}").EXPERIMENT
    return found
