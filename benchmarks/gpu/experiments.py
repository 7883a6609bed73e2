"""The experiments of the GPU benchmarks. They contain the cases that the table of goals needs, and the candidates that
run at each case."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from benchmarks.gpu import liger
from benchmarks.gpu.calls import FORWARD_AND_BACKWARD
from benchmarks.gpu.candidates import (
    CandidateKernel,
    Limit,
    compiled,
    copy,
    eager,
    flex,
    grouped_mm,
    matmul,
    ours,
    own,
    read,
    sdpa,
)
from benchmarks.gpu.machine import Machine
from llmbench.bench.kernels import work_of
from llmbench.errors import UnknownNameError, suggestion
from llmbench.kernels.attention import attention
from llmbench.kernels.decoding import attention as decode_attention
from llmbench.kernels.decoding import latent as mla_decode
from llmbench.kernels.experts import mixture as moe
from llmbench.kernels.kernel import Kernel
from llmbench.kernels.loss import linear as loss
from llmbench.kernels.norm.norm import LAYER_NORM, RMS_NORM
from llmbench.kernels.norm.norm import Case as NormCase
from llmbench.kernels.pointwise import glu, rope
from llmbench.measure.results import Scalar
from llmbench.sizing.work import Pass

__all__ = ["EXPERIMENTS", "FAMILIES", "Experiment", "chosen"]


@dataclass(frozen=True, kw_only=True)
class Experiment:
    """One pass of a kernel at one or more cases, with its candidates. The first candidate is our kernel. All cases use
    the same compiled code.

    - `family`: the group of experiments that one child process measures.
    - `first`: whether a first run on a new machine begins with this experiment.
    - `check_case`: the case at which all candidates are checked. It is small enough for fp64 and uses the same compiled
      code. None: the candidates are checked at each case of `cases`.
    - `tiny`: the case for a rehearsal.
    - `extra(case, dtype)` returns values that are added to each row.
    """

    name: str
    kernel: Kernel
    direction: Pass
    family: str
    first: bool = False
    cases: Sequence[Any]
    check_case: Any = None
    tiny: Any
    candidates: Sequence[CandidateKernel | Limit]
    extra: Callable[[Any, torch.dtype], Mapping[str, Scalar]] = lambda case, dtype: {}


def _first(op: Callable[..., Any]) -> Callable[..., Any]:
    def first(**inputs: Any) -> Any:
        return op(**inputs)[0]

    return first


ATTENTION = replace(attention.KERNEL, run=_first(attention.KERNEL.run), reference=_first(attention.KERNEL.reference))
"""Our attention kernel without its second result, the log-sum-exp of the scores. The other candidates do not return
it."""


def _attention() -> Iterator[Experiment]:
    kernel, case = ATTENTION, attention.Case
    both = (ours(kernel), sdpa("flash"), sdpa("cudnn"))
    for direction in FORWARD_AND_BACKWARD:
        for width, heads, lengths in ((128, 16, (8192, 16384)), (64, 32, (8192,))):
            for causal in (False, True):
                yield Experiment(
                    name=f"attention D{width} {'causal' if causal else 'full'} {direction}",
                    kernel=kernel,
                    direction=direction,
                    family="attention",
                    first=width == 128 and causal,
                    cases=[case(16384 // s, heads, heads, s, s, width, causal=causal) for s in lengths],
                    check_case=case(2, 2, 2, 2048, 2048, width, causal=causal),
                    tiny=case(1, 2, 2, 64, 64, 16, causal=causal),
                    candidates=both,
                )
    for direction in FORWARD_AND_BACKWARD:
        whole = own(kernel, "own causal", lambda case: case._replace(window=None, alibi=False))
        yield Experiment(
            name=f"attention window {direction}",
            kernel=kernel,
            direction=direction,
            family="attention",
            cases=[case(1, 16, 16, 32768, 32768, 64, window=1024)],
            check_case=case(2, 2, 2, 4096, 4096, 64, window=1024),
            tiny=case(1, 2, 2, 64, 64, 16, window=20),
            candidates=(ours(kernel), flex, whole),
        )
        yield Experiment(
            name=f"attention ALiBi {direction}",
            kernel=kernel,
            direction=direction,
            family="attention",
            cases=[case(2, 16, 16, 8192, 8192, 128, alibi=True)],
            check_case=case(2, 2, 2, 2048, 2048, 128, alibi=True),
            tiny=case(1, 2, 2, 64, 64, 16, alibi=True),
            candidates=(ours(kernel), flex, whole),
        )


def _decoding() -> Iterator[Experiment]:
    kernel, case = decode_attention.KERNEL, decode_attention.Case
    tiny = case((40, 40), 4, 2, 16, capacity=40)
    # 512 MiB of cache. SDPA has no sequence lengths, so every slot must be in use.
    batch = case((4096,) * 32, 32, 8, 128, capacity=4096)
    yield Experiment(
        name="GQA decode",
        kernel=kernel,
        direction="forward",
        family="decode",
        first=True,
        cases=[batch],
        tiny=tiny,
        candidates=(ours(kernel), sdpa(), copy, read),
    )
    yield Experiment(
        name="GQA decode paged",
        kernel=kernel,
        direction="forward",
        family="decode",
        cases=[case((131072,), 64, 8, 128, page=16)],  # one sequence with 512 MiB of cache
        tiny=tiny._replace(page=16),
        candidates=(ours(kernel), copy, read),
    )
    kernel, mla = mla_decode.KERNEL, mla_decode.Case
    for heads, tiny_heads in ((16, 3), (128, 65)):
        yield Experiment(
            name=f"MLA decode {heads} heads",
            kernel=kernel,
            direction="forward",
            family="mla",
            first=heads == 128,
            cases=[mla((8192,) * 64, heads)],
            # The check case has the same number of programs. Its sequences are shorter, because the reference copies
            # the cache for each head.
            check_case=mla((512,) * 64, heads),
            tiny=mla((40, 20), tiny_heads, 32, 16),
            candidates=(ours(kernel), copy, read) if heads == 16 else (ours(kernel), matmul),
        )


def _rows() -> Iterator[Experiment]:
    """Yield the experiments of norms, rotary positions and gated activations. Each case is checked at full size,
    because its fp64 reference fits into memory."""
    norm, rotary, gated = NormCase, rope.Case, glu.Case
    every: tuple[tuple[str, str, Kernel, Any, Any, CandidateKernel], ...] = (
        ("norm", "RMSNorm", RMS_NORM, norm(16384, 4096, "w"), norm(5, 64, "w"), liger.rms_norm),
        (
            "norm",
            "add+RMSNorm",
            RMS_NORM,
            norm(16384, 4096, "w", residual=True),
            norm(5, 64, "w", residual=True),
            liger.add_rms_norm,
        ),
        ("norm", "LayerNorm", LAYER_NORM, norm(16384, 4096, "wb"), norm(5, 64, "wb"), liger.layer_norm),
        ("rope", "RoPE", rope.KERNEL, rotary(2, 8192, 32, 8, 128), rotary(1, 5, 4, 2, 16), liger.rope),
        ("glu", "SwiGLU", glu.KERNEL, gated(16384, 11008), gated(5, 48), liger.swiglu),
        ("glu", "GEGLU", glu.KERNEL, gated(16384, 14336, "gelu_tanh"), gated(5, 48, "gelu_tanh"), liger.geglu),
    )
    for family, name, kernel, case, tiny, of_liger in every:
        for direction in FORWARD_AND_BACKWARD:
            yield Experiment(
                name=f"{name} {direction}",
                kernel=kernel,
                direction=direction,
                family=family,
                first=direction == "forward" and name in ("RMSNorm", "RoPE", "SwiGLU"),
                cases=[case],
                tiny=tiny,
                candidates=(ours(kernel), eager(kernel), compiled(kernel), of_liger, copy),
            )


def _mixtures() -> Iterator[Experiment]:
    kernel, case = moe.KERNEL, moe.Case
    tiny = case(24, 32, 48, 4, 2)
    for direction in FORWARD_AND_BACKWARD:
        yield Experiment(
            name=f"MoE {direction}",
            kernel=kernel,
            direction=direction,
            family="moe",
            first=direction == "forward",
            cases=[case(8192, 4096, 14336, 8, 2)],  # Mixtral 8x7B
            check_case=case(2048, 4096, 2048, 8, 2),
            tiny=tiny,
            candidates=(ours(kernel), grouped_mm, matmul),
        )
    yield Experiment(
        name="MoE decode",
        kernel=kernel,
        direction="forward",
        family="moe",
        cases=[
            case(64, 2048, 768, 128, 8),  # Qwen3-30B-A3B, 1.1 GiB of weights
            case(128, 2880, 2880, 32, 4, "swiglu_oai", bias=True),  # gpt-oss-20b, 1.5 GiB of weights
        ],
        tiny=tiny._replace(tokens=5),
        candidates=(ours(kernel), copy, read),
    )


def _three_products(case: Any, machine: Machine) -> Callable[[], None]:
    """Return the call that computes three matrix products with cuBLAS: the logits, the gradient of the hidden states,
    and the gradient of the head's weight. Every loss with gradients needs at least these products."""
    shapes = (case.tokens, case.hidden), (case.vocabulary, case.hidden), (case.tokens, case.vocabulary)
    x, weight, logits = (torch.randn(shape, device=machine.device, dtype=machine.dtype) for shape in shapes)
    dx, dweight = torch.empty_like(x), torch.empty_like(weight)

    def call() -> None:
        torch.mm(x, weight.T, out=logits)
        torch.mm(logits, weight, out=dx)
        torch.mm(logits.T, x, out=dweight)

    return call


three_products = Limit(
    name="three products",
    work=lambda case, machine: (work_of(loss.KERNEL.cost(case, machine.dtype), "both")[0], 0),
    prepare=_three_products,
)


def _loss() -> Iterator[Experiment]:
    kernel, case = loss.KERNEL, loss.Case

    def sizes(case: Any, dtype: torch.dtype, gradients: bool) -> dict[str, Scalar]:
        operands = (case.tokens + case.vocabulary) * case.hidden
        results = operands * dtype.itemsize + 4 if gradients else 4
        return {"logits_bytes": case.tokens * case.vocabulary * dtype.itemsize, "results_bytes": results}

    common: dict[str, Any] = {
        "kernel": kernel,
        "family": "loss",
        "cases": [case(16384, 4096, 128256)],  # Llama 3 8B
        "check_case": case(2048, 4096, 32768),
        "tiny": case(6, 32, 80),
    }
    yield Experiment(
        name="linear cross-entropy both",
        direction="both",
        first=True,
        candidates=(ours(kernel), eager(kernel), liger.linear_cross_entropy, three_products),
        extra=lambda case, dtype: sizes(case, dtype, True),
        **common,
    )
    yield Experiment(
        name="linear cross-entropy forward",
        direction="forward",
        candidates=(ours(kernel), matmul),
        extra=lambda case, dtype: sizes(case, dtype, False),
        **common,
    )


EXPERIMENTS = (*_attention(), *_decoding(), *_rows(), *_mixtures(), *_loss())
"""All experiments, in the order of the goals."""


FAMILIES = tuple(dict.fromkeys(experiment.family for experiment in EXPERIMENTS))
"""The families of experiments, in the order in which they are measured."""


def chosen(words: Sequence[str]) -> list[Experiment]:
    """Return the experiments whose families are in `words`, or whose names contain at least one of `words`. If `words`
    is empty, return all experiments. Raises UnknownNameError for a word that fits no experiment."""
    for word in words:
        if not any(_fits(experiment, word) for experiment in EXPERIMENTS):
            names = [*FAMILIES, *(experiment.name for experiment in EXPERIMENTS)]
            near = suggestion(word, names)
            hint = f"did you mean `{near}`?" if near else f"choose from {', '.join(names)}"
            raise UnknownNameError(f"no experiment has `{word}` in its name", hint=hint)
    return [experiment for experiment in EXPERIMENTS if not words or any(_fits(experiment, word) for word in words)]


def _fits(experiment: Experiment, word: str) -> bool:
    if word.lower() in FAMILIES:
        return experiment.family == word.lower()
    return word.lower() in experiment.name.lower()
