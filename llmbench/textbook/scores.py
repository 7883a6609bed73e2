"""Claims about the scores of attention: their memory, and what flash attention saves."""

from __future__ import annotations

import math
from random import Random
from typing import Literal

from llmbench.sizing.memory import Memory
from llmbench.sizing.traffic import BLOCK, attention_bytes
from llmbench.sizing.training import training_memory
from llmbench.sizing.work import work
from llmbench.sizing.workload import Workload
from llmbench.spec.catalog import load_bundled
from llmbench.textbook.claim import Bound, Claim, Figure, Reading
from llmbench.textbook.models import attention_core, gpt2, less

__all__ = ["CLAIMS"]

FLASH = "FlashAttention, arXiv 2205.14135"
TRAINING = "forward and backward pass of 12 layers of width 768, batch 8"
A100 = 40e9
PEAK = "peak of the op table"


def scores(seq_len: int, *, batch: int = 1) -> int:
    """Return the elements of the score matrices of one layer with 32 heads."""
    workload = Workload.train(seq_len, batch, attention="standard", activation_dtype="fp32")
    return attention_core(load_bundled("llama2-7b"), workload)[0].score_bytes // 4


def training(attention: Literal["standard", "flash"], seq_len: int, loss: Literal["plain", "chunked"] = "plain") -> int:
    """Return the peak bytes of a training step of GPT-2 with batch 8 in mixed precision, in plain PyTorch."""
    memory: Memory = training_memory(
        gpt2(8192), seq_len, micro_batch=8, attention=attention, kernels="eager", loss=loss
    )
    return memory.peak_bytes


def traffic(spec_name: str, seq_len: int, batch: int, *, cached: bool) -> float:
    """Return the bytes that standard attention moves, divided by the bytes that flash attention moves.

    cached: whether a cache holds keys and values between two blocks of queries.
    """
    spec = load_bundled(spec_name)
    moved = {}
    for name in ("standard", "flash"):
        op, mixer = attention_core(spec, Workload.train(seq_len, batch, attention=name))
        moved[name] = attention_bytes(op, mixer, "both", batch=batch, seq_len=seq_len, dtype="bf16")
        if name == "flash" and cached:
            moved[name] = work([op], "both").bytes
    return moved["standard"] / moved["flash"]


def doubled() -> float:
    """Return the factor of the scores if the sequence is twice as long."""
    return scores(4096) / scores(2048)


def blockwise_error(*, rescaled: bool) -> float:
    """Return the relative error of attention that is computed block by block: one query, 256 keys, blocks of 64.

    rescaled: whether the running sums are rescaled to the new maximum (online softmax). If not, the results of one
    softmax per block are added.
    """
    random = Random(0)
    keys, block = 256, 64
    scores_, values = [random.gauss(0, 1) for _ in range(keys)], [random.random() for _ in range(keys)]
    exact = _softmax_sum(scores_, values)
    if not rescaled:
        starts = range(0, keys, block)
        parts = [_softmax_sum(scores_[i : i + block], values[i : i + block]) for i in starts]
        return abs(sum(parts) - exact) / exact
    most, total, result = -math.inf, 0.0, 0.0
    for start in range(0, keys, block):
        top = max(most, *scores_[start : start + block])
        shrink = math.exp(most - top)
        weights = [math.exp(score - top) for score in scores_[start : start + block]]
        total = total * shrink + sum(weights)
        result = result * shrink + sum(w * v for w, v in zip(weights, values[start : start + block], strict=True))
        most = top
    return abs(result / total - exact) / exact


def _softmax_sum(scores_: list[float], values: list[float]) -> float:
    weights = [math.exp(score - max(scores_)) for score in scores_]
    return sum(w * v for w, v in zip(weights, values, strict=True)) / sum(weights)


def with_probabilities_only(seq_len: int) -> int:
    """Return the peak bytes of flash attention, and the bf16 probabilities of all layers in addition."""
    core, _ = attention_core(gpt2(8192), Workload.train(seq_len, 8, attention="standard"))
    return training("flash", seq_len) + core.count * core.score_bytes


def on_40_gb(name: str, says: str, bound: Bound, figures: tuple[Figure, ...], why: str, command: str = "") -> Claim:
    """Return a claim that a training fits in the memory of an A100 with 40 GB, or that it does not."""
    return Claim(
        name=name,
        says=says,
        claimed=A100,
        unit="bytes",
        bound=bound,
        at=f"{TRAINING}, mixed precision",
        source=FLASH,
        figures=figures,
        why=why,
        command=command,
    )


CLAIMS = (
    Claim(
        name="score elements",
        says="the scores of one layer have 134,217,728 elements",
        claimed=134_217_728,
        unit="count",
        bound="exact",
        at="2,048 tokens, 32 heads",
        source=FLASH,
        figures=(Figure("heads × tokens²", lambda: scores(2048)),),
        why="Every head has a score for every pair of tokens.",
        command="llmbench memory llama2-7b --seq 2048 --kernels standard",
    ),
    Claim(
        name="score bytes",
        says="the scores of one layer need 537 MB",
        claimed=537e6,
        unit="bytes",
        at="2,048 tokens, 32 heads, fp32",
        source=FLASH,
        figures=(Figure("4 bytes × heads × tokens²", lambda: 4 * scores(2048)),),
        why="The textbook counts 1 MB as 1,000,000 bytes.",
    ),
    Claim(
        name="scores in training",
        says="the scores of 12 layers and their gradients need 102 GB",
        claimed=102e9,
        unit="bytes",
        at="2,048 tokens, 32 heads, fp32, batch 8",
        source=FLASH,
        figures=(Figure("2 × layers × 4 bytes × batch × heads × tokens²", lambda: 2 * 12 * 4 * scores(2048, batch=8)),),
        why="The textbook rounds before it multiplies. The gradients of the layers do not exist at the same time, so a"
        " real step needs about half of it.",
    ),
    Claim(
        name="twice the length",
        says="a sequence of twice the length has four times the scores",
        claimed=4,
        bound="exact",
        at="2,048 and 4,096 tokens",
        source=FLASH,
        figures=(Figure("(2 × tokens)² / tokens²", doubled),),
        why="Each of twice as many queries has twice as many keys.",
    ),
    Claim(
        name="flash memory, computed",
        says="flash attention needs 52% less memory for training at 2,048 tokens",
        claimed=-0.52,
        unit="change",
        bound="or better",
        at=f"{TRAINING}, mixed precision",
        source=FLASH,
        figures=(
            Figure(
                "peak of the op table, flash / standard",
                lambda: less(training("flash", 2048), training("standard", 2048)),
            ),
        ),
        why="The saving is larger, because plain PyTorch computes the softmax of standard attention in fp32 and keeps"
        " its result.",
        command="llmbench memory gpt2 --set positions.num_positions=8192 --seq 2048 --micro-batch 8 --kernels standard",
    ),
    on_40_gb(
        "standard at 4,096",
        "standard attention trains at 4,096 tokens on 40 GB (the textbook prints its time)",
        "at most",
        (
            Figure(PEAK, lambda: training("standard", 4096), "the whole step"),
            Figure(
                "layers × batch × heads × tokens² × 2 bytes, and the peak of flash attention",
                lambda: with_probabilities_only(4096),
                "only the bf16 probabilities are stored",
            ),
        ),
        "Even the probabilities alone nearly fill the GPU. So the time that the textbook prints at 4,096 tokens was not"
        " measured with this batch on this GPU.",
    ),
    on_40_gb(
        "standard at 8,192",
        "standard attention does not train at 8,192 tokens on 40 GB",
        "at least",
        (Figure(PEAK, lambda: training("standard", 8192)),),
        "The scores grow with the square of the length.",
    ),
    on_40_gb(
        "flash at 8,192",
        "flash attention trains at 8,192 tokens on 40 GB",
        "at most",
        (
            Figure(PEAK, lambda: training("flash", 8192), "PyTorch's cross-entropy"),
            Figure(PEAK, lambda: training("flash", 8192, "chunked"), "a loss in chunks, PyTorch's norms"),
            Figure(
                PEAK,
                lambda: training_memory(gpt2(8192), 8192, micro_batch=8, loss="chunked").peak_bytes,
                "a loss in chunks, fused norms and activations",
            ),
        ),
        "Without scores, the logits are the largest tensor: 65,536 tokens × 50,257 words. A loss that stores them in"
        " fp32 needs more than the whole GPU.",
        "llmbench memory gpt2 --set positions.num_positions=8192 --seq 8192 --micro-batch 8",
    ),
    Claim(
        name="teaching code",
        says="attention can be computed block by block (the textbook's teaching code for flash attention)",
        claimed=1e-9,
        unit="number",
        bound="at most",
        at="relative error of one query with 256 keys in blocks of 64; the values lie between 0 and 1",
        source=FLASH,
        figures=(
            Figure(
                "running maximum, sum and result, rescaled per block",
                lambda: blockwise_error(rescaled=True),
                "online softmax",
            ),
            Figure(
                "the sum of one softmax per block",
                lambda: blockwise_error(rescaled=False),
                "the textbook's teaching code",
            ),
        ),
        why="The weights of each softmax sum to 1. So the weights of four added softmaxes sum to 4, and the result is"
        " about four times too large.",
        command="llmbench worked flash",
    ),
    Claim(
        name="HBM traffic",
        says="standard attention moves 9.2 times the bytes of flash attention (40.3 and 4.4 GB)",
        claimed=round(40.3 / 4.4, 1),
        bound="between",
        at="GPT-2 medium, 1,024 tokens, batch 64, forward and backward",
        source=f"{FLASH}, figure 2",
        figures=(
            Figure(
                f"11 score matrices and the inputs / inputs read once per block of {BLOCK} queries",
                lambda: traffic("gpt2-medium", 1024, 64, cached=False),
                "no cache keeps keys and values",
            ),
            Figure(
                "11 score matrices and the inputs / inputs read once",
                lambda: traffic("gpt2-medium", 1024, 64, cached=True),
                "a cache keeps all keys and values",
            ),
        ),
        why="Standard attention writes and reads its scores: 4 times in the forward pass, 7 times in the backward pass."
        " Our two bounds differ in the cache: a GPU keeps a part of the keys and values there. The measured standard"
        " attention also has passes of its own for a mask and dropout.",
        command="llmbench bench attention --seq 1024",
    ),
    *(
        Claim(
            name=f"flash {length}",
            says=f"flash attention is {claimed}× as fast as standard at {length:,} tokens",
            claimed=claimed,
            at=TRAINING,
            source=FLASH,
            bound="or better",
            reading=Reading(f"flash {length}", "time ratio", "standard", "flash"),
            why="The gain grows with the length, because standard attention moves bytes that grow with its square.",
        )
        for length, claimed in ((512, 1.2), (1024, 2.2), (2048, 3.9), (4096, 7.9))
    ),
    Claim(
        name="flash memory, measured",
        says="flash attention needs 52% less memory at 2,048 tokens",
        claimed=-0.52,
        at=TRAINING,
        source=FLASH,
        unit="change",
        bound="or better",
        reading=Reading("flash 2048", "memory change", "flash", "standard"),
        why="See the computed figure.",
    ),
)
"""All claims of this topic."""
