"""What is held against ours: each takes the inputs of a kernel and gives what the kernel's reference gives.

A contender that this machine does not have raises CannotRunError from its builder, and its row is n/a.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from benchmarks.gpu.calls import Op
from benchmarks.gpu.goals import COPY, MATMUL, OURS, READ
from benchmarks.gpu.machine import Machine
from llmbench.errors import CannotRunError
from llmbench.kernels.attention import Case as AttentionCase
from llmbench.kernels.kernel import Kernel

__all__ = ["Bound", "Contender", "compiled", "copy", "flex", "grouped_mm", "matmul", "ours", "own", "read", "sdpa"]

OWN_FACTOR, RIVAL_FACTOR = 2.0, 8.0
"""Of plain torch's error: what ours may have, and what others may have, whose business it is to do the same."""


@dataclass(frozen=True, kw_only=True)
class Contender:
    """`build(case, machine)` gives an op. `variant` is the case that it runs instead of the experiment's; `scribbles`:
    it writes over what it is given. `factor` as in `kernels.accuracy.compare`."""

    name: str
    build: Callable[[Any, Machine], Op]
    variant: Callable[[Any], Any] = lambda case: case
    scribbles: bool = False
    factor: float = RIVAL_FACTOR


@dataclass(frozen=True, kw_only=True)
class Bound:
    """Something to be held against that computes no kernel's results: an anchor, or the products that none can spare.
    `work(case, machine)` are the FLOPs and bytes of the call that `prepare(case, machine)` gives."""

    name: str
    work: Callable[[Any, Machine], tuple[int, int]]
    prepare: Callable[[Any, Machine], Callable[[], Any]]


def ours(kernel: Kernel) -> Contender:
    """The kernel as it ships."""
    return Contender(name=OURS, build=lambda case, machine: kernel.run, factor=OWN_FACTOR)


def own(kernel: Kernel, name: str, variant: Callable[[Any], Any]) -> Contender:
    """The kernel at another case."""
    return Contender(name=name, build=lambda case, machine: kernel.run, variant=variant, factor=OWN_FACTOR)


def compiled(kernel: Kernel) -> Contender:
    """The reference by torch.compile."""
    return Contender(name="torch.compile", build=lambda case, machine: machine.compile(kernel.reference))


def sdpa(backend: str | None = None) -> Contender:
    """torch's scaled_dot_product_attention by one of its backends, or as it chooses; of `q`, `k`, `v` and `causal`."""
    from torch.nn.attention import SDPBackend, sdpa_kernel

    only = getattr(SDPBackend, f"{backend.upper()}_ATTENTION") if backend else None

    def op(q: Tensor, k: Tensor, v: Tensor, causal: bool = False, **_: Any) -> Tensor:
        grouped = q.shape[1] != k.shape[1]
        try:
            with sdpa_kernel(only) if only is not None else nullcontext():
                return F.scaled_dot_product_attention(q, k, v, is_causal=causal, enable_gqa=grouped)
        except RuntimeError as problem:
            first = str(problem).partition("\n")[0]
            if "No available kernel" in first or "No viable backend" in first:
                raise CannotRunError(first) from None
            raise

    return Contender(name=f"sdpa-{backend}" if backend else "sdpa", build=lambda case, machine: op)


def _flex(case: AttentionCase, machine: Machine) -> Op:
    from torch.nn.attention.flex_attention import create_block_mask, flex_attention

    def seen(b: Tensor, h: Tensor, query: Tensor, key: Tensor) -> Tensor:
        if case.window is None:
            return query >= key
        return (query >= key) & (query - key < case.window)

    mask = create_block_mask(seen, None, None, case.queries, case.keys, device=machine.device.type)
    powers = [2.0 ** (-8 * (head + 1) / case.heads) for head in range(case.heads)]
    slopes = torch.tensor(powers, dtype=torch.float32, device=machine.device)

    def sloped(score: Tensor, b: Tensor, h: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return score + slopes[h] * (key - query)

    attend = machine.compile(flex_attention)
    score_mod = sloped if case.alibi else None

    def op(q: Tensor, k: Tensor, v: Tensor, **_: Any) -> Tensor:
        if q.requires_grad and q.device.type == "cpu":
            raise CannotRunError("FlexAttention has no backward pass on a CPU")
        out: Tensor = attend(q, k, v, score_mod=score_mod, block_mask=mask)
        return out

    return op


flex = Contender(name="flex", build=_flex)
"""FlexAttention, compiled; causal, with the case's window or slopes."""


def _grouped_mm(x: Tensor, weights: Tensor, chosen: Tensor, gate: Tensor, up: Tensor, down: Tensor, **_: Any) -> Tensor:
    """Sort, gather, three grouped products, and a weighted sum back; the host learns nothing, as in ours."""
    k = chosen.shape[1]
    choices, order = chosen.flatten().sort(stable=True)
    experts = torch.arange(len(up), device=x.device, dtype=choices.dtype)
    ends = torch.searchsorted(choices, experts, right=True).to(torch.int32)
    rows = x[order // k]
    hidden = F.silu(torch._grouped_mm(rows, gate.mT, offs=ends)) * torch._grouped_mm(rows, up.mT, offs=ends)
    made = torch._grouped_mm(hidden, down.mT, offs=ends)
    back = torch.empty_like(made).index_copy(0, order, made).view(*chosen.shape, -1)
    return torch.bmm(weights.to(x.dtype)[:, None], back)[:, 0]


def _has_grouped_mm(case: Any, machine: Machine) -> Op:
    if not hasattr(torch, "_grouped_mm"):
        raise CannotRunError(f"torch {torch.__version__} has no _grouped_mm")
    return _grouped_mm


grouped_mm = Contender(name="grouped_mm", build=_has_grouped_mm)
"""A mixture by torch._grouped_mm; SwiGLU, without biases."""


def _copy(case: Any, machine: Machine) -> Callable[[], Any]:
    source = torch.randn(machine.sizes.bytes // 4, device=machine.device)
    target = torch.empty_like(source)
    return lambda: target.copy_(source)


def _read(case: Any, machine: Machine) -> Callable[[], Any]:
    return torch.randn(machine.sizes.bytes // 4, device=machine.device).sum


def _matmul(case: Any, machine: Machine) -> Callable[[], Any]:
    n = machine.sizes.matmul
    a, b = (torch.randn(n, n, device=machine.device, dtype=machine.dtype) for _ in range(2))
    return lambda: a @ b


copy = Bound(name=COPY, work=lambda case, machine: (0, 2 * machine.sizes.bytes), prepare=_copy)
read = Bound(name=READ, work=lambda case, machine: (0, machine.sizes.bytes), prepare=_read)
matmul = Bound(name=MATMUL, work=lambda case, machine: (2 * machine.sizes.matmul**3, 0), prepare=_matmul)
"""The anchors of the run once more, in the rounds of what is held against them."""
