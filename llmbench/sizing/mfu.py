"""The utilization of a training run: FLOPs per second by several conventions, as shares of the peak of the devices.

Model FLOPs utilization (MFU) counts the FLOPs that the model needs. Hardware FLOPs utilization (HFU) also counts those
that the backward pass computes again (PaLM, arXiv 2204.02311, appendix B). Papers count differently: with or without
embeddings, with all (query, key) pairs or with those inside the causal mask. `conventions` gives all of them, so that a
published figure can be compared.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import msgspec

from llmbench.errors import SpecError
from llmbench.sizing.flops import repeated_flops, step_flops
from llmbench.sizing.formula import counted, plus, times
from llmbench.sizing.lower import lower
from llmbench.sizing.op import Op
from llmbench.sizing.params import count_parameters
from llmbench.sizing.workload import Recompute, Workload
from llmbench.spec.device import DeviceSpec, DType
from llmbench.spec.model import ModelSpec

Kind = Literal["mfu", "hfu"]
Repeated = tuple[tuple[int, str], ...]
"""FLOPs of one sequence that are computed again, each number with what it belongs to."""


class Convention(msgspec.Struct, frozen=True, kw_only=True):
    """A way to count the FLOPs of a training step.

    name: short name for tables. key: name for programs. kind: whether FLOPs that are computed again count.
    used_by: who counts so. flops: FLOPs of one sequence. formula: the formula of these FLOPs with numbers.
    repeated: the FLOPs that are computed again.
    """

    name: str
    key: str
    kind: Kind
    used_by: str
    flops: int
    formula: str
    repeated: Repeated = ()


class _Count(NamedTuple):
    """The FLOPs of one sequence, their formula with numbers, and those of them that are computed again."""

    flops: int
    formula: str
    repeated: Repeated = ()


def conventions(spec: ModelSpec, seq_len: int, recompute: Recompute = "none") -> list[Convention]:
    """Return the FLOPs of a training step on one sequence, by each convention. `seq_len`: tokens per sequence.

    The causal conventions count flash attention. The full conventions count the attention of the papers, which stores
    the score matrices. Selective recomputation repeats only stored scores, so it adds FLOPs to the full HFU alone.
    """
    causal = lower(spec, Workload.train(seq_len))
    full = lower(spec, Workload.train(seq_len, masked_pairs=True, attention="standard"))
    parameters = count_parameters(spec)
    tokens = counted(seq_len, "tokens")

    def rule(count: int, noun: str) -> _Count:
        return _Count(6 * count * seq_len, times("6", counted(count, noun), tokens))

    def with_pairs(ops: list[Op], noun: str) -> _Count:
        products = rule(parameters.active, "active parameters" if spec.is_moe else "parameters")
        scores = _total(ops, "attention")
        return _Count(products.flops + scores, plus(products.formula, counted(scores, noun)))

    def table(ops: list[Op], noun: str) -> _Count:
        parts = {
            "of products with weights": _total(ops, "matmul"),
            noun: _total(ops, "attention"),
            "of recurrences": _total(ops, "scan", "conv"),
        }
        return _Count(sum(parts.values()), plus(*(counted(size, name) for name, size in parts.items() if size)))

    def again(ops: list[Op], noun: str) -> _Count:
        once = table(ops, noun)
        layers = repeated_flops(ops, recompute)
        flash = sum(op.count * op.recompute_flops for op in ops)  # standard attention has none
        parts = (layers, "of recomputed layers"), (flash, "of scores that flash attention repeats")
        repeated = tuple(term for term in parts if term[0])
        formula = plus(once.formula, *(counted(*term) for term in repeated))
        return _Count(once.flops + layers + flash, formula, repeated)

    inside, every = "of pairs inside the mask", "of all pairs"
    found: list[tuple[str, str, Kind, str, _Count]] = [
        ("6·N, N: all parameters", "6n", "mfu", "rule of thumb", rule(parameters.total, "parameters")),
    ]
    if spec.is_moe:
        count = rule(parameters.active, "active parameters")
        found.append(("6·N, N: active", "6n_active", "mfu", "rule of thumb for experts", count))
    without = parameters.active_no_embeddings
    found += [
        ("6·N, N: without embeddings", "6n_no_embeddings", "mfu", "scaling laws", rule(without, "parameters")),
        ("6·N + causal attention", "6n_causal", "mfu", "", with_pairs(causal, inside)),
        ("6·N + full attention", "6n_full", "mfu", "PaLM, LLM Foundry", with_pairs(full, every)),
        ("model FLOPs, causal", "model_causal", "mfu", "llmbench", table(causal, inside)),
        ("model FLOPs, full", "model_full", "mfu", "Korthikanti 2022", table(full, every)),
        ("with recompute, causal", "hardware_causal", "hfu", "llmbench", again(causal, inside)),
        ("with recompute, full", "hardware_full", "hfu", "", again(full, every)),
    ]
    return [
        Convention(
            name=name,
            key=key,
            kind=kind,
            used_by=used_by,
            flops=count.flops,
            formula=count.formula,
            repeated=count.repeated,
        )
        for name, key, kind, used_by, count in found
    ]


def _total(ops: list[Op], *kinds: str) -> int:
    workload = Workload.train(1)
    return sum(step_flops(op, workload) for op in ops if op.kind in kinds)


def peak_flops_per_s(device: DeviceSpec, dtype: DType) -> float:
    """Return the dense peak of a device in a number format, in FLOP/s.

    Raises SpecError if the device does not compute the format, or if no source states the peak.
    """
    peak = device.peak_flops_per_s(dtype)
    computed = ("fp32", *device.matrix_formats.value)
    known = [each for each in device.dense_flops_per_s if each in computed and not each.startswith("int")]
    if peak is not None and dtype in computed:
        return peak
    problem = "no source states its peak in" if dtype in computed else "its matrix units do not compute"
    raise SpecError(f"{device.name}: {problem} {dtype}", hint=f"choose from {', '.join(known)}" if known else None)


def utilization(flops: int, seq_len: int, tokens_per_s: float, gpus: int, peak: float) -> float:
    """Return FLOPs per second of all GPUs, as a share of their peak.

    flops: FLOPs of one sequence of `seq_len` tokens. tokens_per_s: tokens per second of all GPUs together.
    """
    return flops / seq_len * tokens_per_s / (gpus * peak)
