"""What is timed: the shapes that the table of goals means, and who is held against ours at each."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from benchmarks.gpu import liger
from benchmarks.gpu.calls import EACH_WAY, work_of
from benchmarks.gpu.contenders import (
    Bound,
    Contender,
    compiled,
    copy,
    flex,
    grouped_mm,
    matmul,
    ours,
    own,
    read,
    sdpa,
)
from benchmarks.gpu.machine import Machine
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

__all__ = ["EXPERIMENTS", "Experiment", "chosen"]


@dataclass(frozen=True, kw_only=True)
class Experiment:
    """One pass of a kernel at some cases, all by the same compiled code, beside its contenders, ours first.

    `gate` is the case at which all are held to the reference, small enough for fp64 and compiled as the cases are; None
    where each case is its own. `tiny` is what a rehearsal runs. `figures(case, dtype)` go into each row.
    """

    name: str
    kernel: Kernel
    way: Pass
    cases: Sequence[Any]
    gate: Any = None
    tiny: Any
    contenders: Sequence[Contender | Bound]
    figures: Callable[[Any, torch.dtype], Mapping[str, Scalar]] = lambda case, dtype: {}


def _first(op: Callable[..., Any]) -> Callable[..., Any]:
    def first(**inputs: Any) -> Any:
        return op(**inputs)[0]

    return first


ATTENTION = replace(attention.KERNEL, run=_first(attention.KERNEL.run), reference=_first(attention.KERNEL.reference))
"""Without its log-sum-exp, which the rivals do not give."""


def _attention() -> Iterator[Experiment]:
    of, case = ATTENTION, attention.Case
    both = (ours(of), sdpa("flash"), sdpa("cudnn"))
    for way in EACH_WAY:
        for width, heads, lengths in ((128, 16, (8192, 16384)), (64, 32, (8192,))):
            for causal in (False, True):
                yield Experiment(
                    name=f"attention D{width} {'causal' if causal else 'full'} {way}",
                    kernel=of,
                    way=way,
                    cases=[case(16384 // s, heads, heads, s, s, width, causal=causal) for s in lengths],
                    gate=case(2, 2, 2, 2048, 2048, width, causal=causal),
                    tiny=case(1, 2, 2, 64, 64, 16, causal=causal),
                    contenders=both,
                )
    for way in EACH_WAY:
        whole = own(of, "own causal", lambda case: case._replace(window=None, alibi=False))
        yield Experiment(
            name=f"attention window {way}",
            kernel=of,
            way=way,
            cases=[case(1, 16, 16, 32768, 32768, 64, window=1024)],
            gate=case(2, 2, 2, 4096, 4096, 64, window=1024),
            tiny=case(1, 2, 2, 64, 64, 16, window=20),
            contenders=(ours(of), flex, whole),
        )
        yield Experiment(
            name=f"attention ALiBi {way}",
            kernel=of,
            way=way,
            cases=[case(2, 16, 16, 8192, 8192, 128, alibi=True)],
            gate=case(2, 2, 2, 2048, 2048, 128, alibi=True),
            tiny=case(1, 2, 2, 64, 64, 16, alibi=True),
            contenders=(ours(of), flex, whole),
        )


def _decoding() -> Iterator[Experiment]:
    of, case = decode_attention.KERNEL, decode_attention.Case
    tiny = case((40, 40), 4, 2, 16, capacity=40)
    batch = case((4096,) * 32, 32, 8, 128, capacity=4096)  # 512 MiB, every slot in use, as SDPA needs it
    yield Experiment(
        name="GQA decode", kernel=of, way="forward", cases=[batch], tiny=tiny, contenders=(ours(of), sdpa(), copy, read)
    )
    yield Experiment(
        name="GQA decode paged",
        kernel=of,
        way="forward",
        cases=[case((131072,), 64, 8, 128, page=16)],  # 512 MiB of one sequence
        tiny=tiny._replace(page=16),
        contenders=(ours(of), copy, read),
    )
    of, mla = mla_decode.KERNEL, mla_decode.Case
    for heads, tiny_heads in ((16, 3), (128, 65)):
        yield Experiment(
            name=f"MLA decode {heads} heads",
            kernel=of,
            way="forward",
            cases=[mla((8192,) * 64, heads)],
            gate=mla((512,) * 64, heads),  # as many programs; the reference repeats the cache for each head
            tiny=mla((40, 20), tiny_heads, 32, 16),
            contenders=(ours(of), copy, read) if heads == 16 else (ours(of), matmul),
        )


def _rows() -> Iterator[Experiment]:
    """Norms, rotary positions and gates: each case is its own gate, since fp64 has room."""
    norm, turn, gate = NormCase, rope.Case, glu.Case
    every: tuple[tuple[str, Kernel, Any, Any, Contender], ...] = (
        ("RMSNorm", RMS_NORM, norm(16384, 4096, "w"), norm(5, 64, "w"), liger.rms_norm),
        (
            "add+RMSNorm",
            RMS_NORM,
            norm(16384, 4096, "w", residual=True),
            norm(5, 64, "w", residual=True),
            liger.add_rms_norm,
        ),
        ("LayerNorm", LAYER_NORM, norm(16384, 4096, "wb"), norm(5, 64, "wb"), liger.layer_norm),
        ("RoPE", rope.KERNEL, turn(2, 8192, 32, 8, 128), turn(1, 5, 4, 2, 16), liger.rope),
        ("SwiGLU", glu.KERNEL, gate(16384, 11008), gate(5, 48), liger.swiglu),
        ("GEGLU", glu.KERNEL, gate(16384, 14336, "gelu_tanh"), gate(5, 48, "gelu_tanh"), liger.geglu),
    )
    for name, of, case, tiny, rival in every:
        for way in EACH_WAY:
            yield Experiment(
                name=f"{name} {way}",
                kernel=of,
                way=way,
                cases=[case],
                tiny=tiny,
                contenders=(ours(of), compiled(of), rival, copy),
            )


def _mixtures() -> Iterator[Experiment]:
    of, case = moe.KERNEL, moe.Case
    tiny = case(24, 32, 48, 4, 2)
    for way in EACH_WAY:
        yield Experiment(
            name=f"MoE {way}",
            kernel=of,
            way=way,
            cases=[case(8192, 4096, 14336, 8, 2)],  # Mixtral 8x7B
            gate=case(2048, 4096, 2048, 8, 2),
            tiny=tiny,
            contenders=(ours(of), grouped_mm, matmul),
        )
    yield Experiment(
        name="MoE decode",
        kernel=of,
        way="forward",
        cases=[
            case(64, 2048, 768, 128, 8),  # Qwen3-30B-A3B, 1.1 GiB of weights
            case(128, 2880, 2880, 32, 4, "swiglu_oai", bias=True),  # gpt-oss-20b, 1.5 GiB
        ],
        tiny=tiny._replace(tokens=5),
        contenders=(ours(of), copy, read),
    )


def _three_products(case: Any, machine: Machine) -> Callable[[], None]:
    """Logits, and the gradients of their operands, by torch's library: no loss with gradients can do less."""
    shapes = (case.tokens, case.hidden), (case.vocabulary, case.hidden), (case.tokens, case.vocabulary)
    x, weight, logits = (torch.randn(shape, device=machine.device, dtype=machine.dtype) for shape in shapes)
    dx, dweight = torch.empty_like(x), torch.empty_like(weight)

    def call() -> None:
        torch.mm(x, weight.T, out=logits)
        torch.mm(logits, weight, out=dx)
        torch.mm(logits.T, x, out=dweight)

    return call


three_products = Bound(
    name="three products",
    work=lambda case, machine: (work_of(loss.KERNEL.cost(case, machine.dtype), "both")[0], 0),
    prepare=_three_products,
)


def _loss() -> Iterator[Experiment]:
    of, case = loss.KERNEL, loss.Case

    def figures(case: Any, dtype: torch.dtype, gradients: bool) -> dict[str, Scalar]:
        operands = (case.tokens + case.vocabulary) * case.hidden
        results = operands * dtype.itemsize + 4 if gradients else 4
        return {"logits_bytes": case.tokens * case.vocabulary * dtype.itemsize, "results_bytes": results}

    common: dict[str, Any] = {
        "kernel": of,
        "cases": [case(16384, 4096, 128256)],  # Llama 3 8B
        "gate": case(2048, 4096, 32768),
        "tiny": case(6, 32, 80),
    }
    yield Experiment(
        name="linear cross-entropy both",
        way="both",
        contenders=(ours(of), liger.linear_cross_entropy, three_products),
        figures=lambda case, dtype: figures(case, dtype, True),
        **common,
    )
    yield Experiment(
        name="linear cross-entropy forward",
        way="forward",
        contenders=(ours(of), matmul),
        figures=lambda case, dtype: figures(case, dtype, False),
        **common,
    )


EXPERIMENTS = (*_attention(), *_decoding(), *_rows(), *_mixtures(), *_loss())
"""All of them, in the order of the goals."""


def chosen(words: Sequence[str]) -> list[Experiment]:
    """Those whose name has one of `words` in it; all where none is given. Raises UnknownNameError for a word that no
    name has."""
    for word in words:
        if not any(word.lower() in each.name.lower() for each in EXPERIMENTS):
            names = [each.name for each in EXPERIMENTS]
            near = suggestion(word, names)
            hint = f"did you mean `{near}`?" if near else f"there is {', '.join(names)}"
            raise UnknownNameError(f"no experiment has `{word}` in its name", hint=hint)
    return [each for each in EXPERIMENTS if not words or any(word.lower() in each.name.lower() for word in words)]
