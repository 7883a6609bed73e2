"""The experiments of `llmbench bench`. Importing this package imports no torch."""

from __future__ import annotations

from collections.abc import Iterable
from importlib import import_module
from typing import TYPE_CHECKING, NamedTuple

from llmbench.errors import LLMBenchError, unknown

if TYPE_CHECKING:
    from llmbench.bench.experiments.experiment import Experiment

__all__ = ["EXPERIMENTS", "AboutExperiment", "find_experiment"]


class AboutExperiment(NamedTuple):
    """The description of an experiment, for `--help`, the docs and the refusals of options.

    - `what`: the things that are compared.
    - `model`, `seq`, `batch`: what the option --model, --seq or --batch sets; "" if the experiment does not take the
      option.
    """

    what: str
    model: str = ""
    seq: str = ""
    batch: str = ""

    @property
    def shape_options(self) -> dict[str, str]:
        """The options that the experiment takes. The value is what the option sets."""
        options = {"--model": self.model, "--seq": self.seq, "--batch": self.batch}
        return {option: meaning for option, meaning in options.items() if meaning}

    def refuse_others(self, name: str, options: Iterable[str]) -> None:
        """Raise LLMBenchError if one of the options is not an option of this experiment, whose name is `name`."""
        taken = ", ".join(f"{option} ({meaning})" for option, meaning in self.shape_options.items())
        for option in options:
            if option not in self.shape_options:
                raise LLMBenchError(
                    f"`bench {name}` does not take {option}",
                    hint=f"it takes {taken}" if taken else "this experiment has fixed shapes; --preset chooses them",
                )


EXPERIMENTS: dict[str, AboutExperiment] = {
    "attention": AboutExperiment(
        "all attention kernels, over sequence lengths, masks and passes",
        model="heads, KV heads and head dim",
        seq="tokens per sequence",
        batch="sequences",
    ),
    "norms": AboutExperiment(
        "LayerNorm and RMSNorm: plain, fused and compiled, alone and with the residual sum, over widths",
        model="hidden size",
        seq="tokens",
    ),
    "activations": AboutExperiment(
        "feed-forwards from ReLU to SwiGLU with equal parameter counts, plain and fused, over widths",
        model="hidden size and feed-forward width",
        seq="tokens",
    ),
    "positions": AboutExperiment(
        "a small model with each position encoding: none, learned, sinusoidal, RoPE, ALiBi",
        model="the whole model, except its position encoding",
        seq="tokens per sequence",
        batch="sequences",
    ),
    "heads": AboutExperiment(
        "MHA, GQA, MQA and MLA at equal hidden size, in prefill and decoding: speed, cache, largest batch",
        model="hidden size, heads, KV heads of GQA, latent of MLA",
        seq="tokens of context",
        batch="sequences",
    ),
    "moe": AboutExperiment(
        "mixtures of experts in three implementations, compared with dense feed-forwards",
        model="hidden size, experts, experts per token",
        seq="tokens",
    ),
    "generate": AboutExperiment(
        "text generation: first token, next token and whole answer, eager and as a CUDA graph",
        model="the whole model",
        seq="tokens of context",
        batch="sequences",
    ),
    "train": AboutExperiment(
        "training steps: plain, with recomputation, compiled; under torchrun, with FSDP2, and with tensor or expert "
        "parallelism",
        model="the whole model",
        seq="tokens per sequence",
        batch="sequences per rank",
    ),
    "collectives": AboutExperiment(
        "all-reduce, all-gather, reduce-scatter and all-to-all under torchrun, over tensor sizes"
    ),
    "textbook": AboutExperiment("a textbook's claims, each with our figure, and whether they hold"),
}
"""Every experiment, by name. For each name, this folder has a file or folder of the same name that defines
`EXPERIMENT`."""


def find_experiment(name: str) -> Experiment:
    """Return the experiment with this name. Raises UnknownNameError, which suggests the most similar name."""
    if name not in EXPERIMENTS:
        raise unknown("experiment", name, EXPERIMENTS)
    experiment: Experiment = import_module(f"{__name__}.{name}").EXPERIMENT
    return experiment.named(name)
