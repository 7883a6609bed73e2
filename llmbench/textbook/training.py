"""Claims about the memory of training."""

from __future__ import annotations

from functools import partial
from typing import Literal, get_args

from llmbench.sizing.training import training_memory
from llmbench.spec.catalog import load_bundled
from llmbench.textbook.claim import Claim, Figure
from llmbench.textbook.models import gpt2, memory_bytes, parameters

__all__ = ["CLAIMS"]

ZERO = "ZeRO, arXiv 1910.02054"
ACTIVATIONS = "activation recomputation, arXiv 2205.05198"


def states(precision: Literal["mixed", "bf16", "fp32"]) -> float:
    """Return the bytes per parameter of weights, gradients and optimizer states of LLaMA-2-7B."""
    spec = load_bundled("llama2-7b")
    full = training_memory(spec, 1, precision=precision).full_bytes
    return (full["weights"] + full["gradients"] + full["optimizer"]) / parameters(spec)


def against_inference(seq_len: int, batch: int) -> float:
    """Return the memory of a training step of LLaMA-2-7B, divided by that of serving the same sequences."""
    spec = load_bundled("llama2-7b")
    return training_memory(spec, seq_len, micro_batch=batch).peak_bytes / memory_bytes(spec, seq_len, batch=batch)


Core = Literal["standard", "flash"]


def eight_times_the_length(attention: Core) -> float:
    """Return the memory of a training step of GPT-2 with 8,192 tokens, divided by that with 1,024 tokens."""
    long, short = (
        training_memory(gpt2(8192), seq_len, micro_batch=8, attention=attention, kernels="eager").peak_bytes
        for seq_len in (8192, 1024)
    )
    return long / short


CLAIMS = (
    Claim(
        name="16 bytes per parameter",
        says="weights, gradients and optimizer states need 16 bytes per parameter",
        claimed=16,
        unit="number",
        at="AdamW, before activations",
        source=ZERO,
        figures=(
            Figure("2 + 2 + 4 + 4 + 4", lambda: states("mixed"), "bf16 with an fp32 copy of the weights"),
            Figure("4 + 4 + 4 + 4", lambda: states("fp32"), "fp32"),
            Figure("2 + 2 + 2 + 2", lambda: states("bf16"), "everything in bf16"),
        ),
        why="Mixed precision saves no memory for the states. It saves activations and time.",
        command="llmbench memory llama2-7b --explain",
    ),
    Claim(
        name="training against inference",
        says="training needs at least 12 times the memory of inference",
        claimed=12,
        bound="at least",
        at="LLaMA-2-7B, mixed precision; the textbook states no length",
        source=ACTIVATIONS,
        figures=tuple(
            Figure(
                "peak of training / memory of serving",
                partial(against_inference, seq_len, batch),
                f"{seq_len:,} tokens, batch {batch}",
            )
            for seq_len, batch in ((2048, 1), (2048, 8), (4096, 32))
        ),
        why="The states alone need 8 times the bytes of bf16 weights. Many tokens per step add activations, but the"
        " cache of inference grows with them, too.",
        command="llmbench memory llama2-7b --seq 2048",
    ),
    Claim(
        name="8 times the length",
        says="a sequence of 8 times the length needs 16 times the memory",
        claimed=16,
        at="training GPT-2 with batch 8 on 1,024 and 8,192 tokens",
        source=ACTIVATIONS,
        figures=tuple(
            Figure("peak at 8,192 / peak at 1,024 tokens", partial(eight_times_the_length, attention), attention)
            for attention in get_args(Core)
        ),
        why="Scores grow with the square of the length, all other activations with the length, and the states not at"
        " all. So the factor is larger with standard attention, and smaller with flash attention.",
        command="llmbench memory gpt2 --set positions.num_positions=8192 --seq 1k..8k --micro-batch 8 --kernels eager",
    ),
)
"""All claims of this topic."""
