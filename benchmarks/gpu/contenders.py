"""What is held against ours: each takes the inputs of a kernel and gives what the kernel's reference gives.

A contender that this machine does not have raises CannotRunError from its builder, and its row is n/a.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor

from benchmarks.gpu.calls import Op
from benchmarks.gpu.goals import COPY, MATMUL, OURS, READ
from benchmarks.gpu.machine import Machine
from llmbench.bench.baselines import compiled_flex, grouped_experts
from llmbench.kernels.attention.attention import Case as AttentionCase
from llmbench.kernels.kernel import Kernel
from llmbench.model.implementations import implementation
from llmbench.model.implementations.interface import ExpertWeights, Given, Implementation, Mask, Scores

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
    """Something to be held against that computes no kernel's results: a reference measurement, or the products that
    none can spare. `work(case, machine)` are the FLOPs and bytes of the call that `prepare(case, machine)` gives."""

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
    name = f"sdpa-{backend}" if backend else "sdpa"
    return Contender(name=name, build=lambda case, machine: _attention(implementation(name)))


def _attention(how: Implementation) -> Op:
    """An implementation's attention on the inputs of our kernel, whole sequences or all slots of a cache. Its mask is
    there from the first call on."""

    @cache
    def mask(batch: int, queries: int, keys: int, device: torch.device, causal: bool, window: int | None) -> Mask:
        query_places, key_places = (torch.arange(length, device=device).expand(batch, -1) for length in (queries, keys))
        return Mask(query_places, key_places, causal, window, None, True)

    def op(
        q: Tensor,
        k: Tensor,
        v: Tensor,
        causal: bool = False,
        window: int | None = None,
        slopes: Tensor | None = None,
        **_: Any,
    ) -> Tensor:
        seen = Given(k, v, mask(len(q), q.shape[2], k.shape[2], q.device, causal, window))
        return how.attend(q, seen, Scores(q.shape[-1] ** -0.5, slopes=slopes))

    return op


def _flex(case: AttentionCase, machine: Machine) -> Op:
    return _attention(compiled_flex(machine.compile))


flex = Contender(name="flex", build=_flex)
"""FlexAttention, compiled, with the case's window or slopes."""


def _grouped_mm(x: Tensor, weights: Tensor, chosen: Tensor, gate: Tensor, up: Tensor, down: Tensor, **_: Any) -> Tensor:
    return grouped_experts(x, weights, chosen, ExpertWeights(gate, up, down, None, None, None), "silu")


grouped_mm = Contender(name="grouped_mm", build=lambda case, machine: _grouped_mm)
"""A mixture by torch's grouped products; SwiGLU, without biases."""


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
"""The reference measurements of the run once more, in the rounds of what is held against them."""
