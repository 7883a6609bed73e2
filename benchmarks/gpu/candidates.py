"""The candidates of the GPU benchmarks: the kernels of llmbench ("ours") and the implementations that they are compared
with. Each candidate takes the inputs of one of our kernels and returns the results of that kernel's reference.

If a candidate is not available on this machine, its builder raises CannotRunError. The row of the candidate is then
n/a.
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
from llmbench.bench.extra_candidates import flex as compiled_flex
from llmbench.bench.extra_candidates.grouped import grouped_experts
from llmbench.kernels.attention.attention import Case as AttentionCase
from llmbench.kernels.kernel import Kernel
from llmbench.model.implementations import implementation as implementation_of
from llmbench.model.implementations.interface import ExpertWeights, Given, Implementation, Mask, Scores

__all__ = [
    "CandidateKernel",
    "Limit",
    "compiled",
    "copy",
    "eager",
    "flex",
    "grouped_mm",
    "matmul",
    "ours",
    "own",
    "read",
    "sdpa",
]

OWN_FACTOR, OTHERS_FACTOR = 2.0, 8.0
"""The error budgets of our kernels and of the other candidates, as multiples of plain torch's error. The other
candidates have a larger budget, because their check only has to show that they compute the same function."""


@dataclass(frozen=True, kw_only=True)
class CandidateKernel:
    """A kernel that takes part in a comparison.

    - `build(case, machine)` returns the kernel's op.
    - `variant(case)` returns the case that the kernel runs instead of the experiment's case.
    - `overwrites_inputs`: whether the op overwrites its inputs.
    - `own`: whether it is a kernel of llmbench.
    - `compiled`: whether torch.compile compiles the kernel, which takes many seconds.
    """

    name: str
    build: Callable[[Any, Machine], Op]
    variant: Callable[[Any], Any] = lambda case: case
    overwrites_inputs: bool = False
    own: bool = False
    compiled: bool = False

    @property
    def factor(self) -> float:
        """The error budget as a multiple of plain torch's error (see `kernels.proof.accuracy.compare`)."""
        return OWN_FACTOR if self.own else OTHERS_FACTOR


@dataclass(frozen=True, kw_only=True)
class Limit:
    """A call whose rate limits the rate of a kernel: a reference measurement, or the matrix products that every
    implementation needs. The call is not checked, because it does not compute the kernel's results.

    `prepare(case, machine)` returns the call. `work(case, machine)` returns the FLOPs and the bytes of the call.
    """

    name: str
    work: Callable[[Any, Machine], tuple[int, int]]
    prepare: Callable[[Any, Machine], Callable[[], Any]]


def ours(kernel: Kernel) -> CandidateKernel:
    """Return our kernel as a candidate, with its shipped configurations."""
    return CandidateKernel(name=OURS, build=lambda case, machine: kernel.run, own=True)


def own(kernel: Kernel, name: str, variant: Callable[[Any], Any]) -> CandidateKernel:
    """Return our kernel as a candidate that runs `variant(case)` instead of the experiment's case."""
    return CandidateKernel(name=name, build=lambda case, machine: kernel.run, variant=variant, own=True)


def compiled(kernel: Kernel) -> CandidateKernel:
    """Return the kernel's reference, compiled by torch.compile, as a candidate."""
    return CandidateKernel(
        name="torch.compile", build=lambda case, machine: machine.compile(kernel.reference), compiled=True
    )


def eager(kernel: Kernel) -> CandidateKernel:
    """Return the kernel's reference in plain torch as a candidate."""
    return CandidateKernel(name="eager", build=lambda case, machine: kernel.reference)


def sdpa(backend: str | None = None) -> CandidateKernel:
    """Return torch's scaled_dot_product_attention as a candidate. It reads the inputs `q`, `k`, `v` and `causal`.
    `backend`: the SDPA backend; None lets torch choose one."""
    name = f"sdpa-{backend}" if backend else "sdpa"
    return CandidateKernel(name=name, build=lambda case, machine: _attention(implementation_of(name)))


def _attention(implementation: Implementation) -> Op:
    """Return an implementation's attention as an op that takes the inputs of our kernel: whole sequences, or all slots
    of a cache. The first call builds the mask, and later calls use the same mask."""

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
        return implementation.attend(q, seen, Scores(q.shape[-1] ** -0.5, slopes=slopes))

    return op


def _flex(case: AttentionCase, machine: Machine) -> Op:
    return _attention(compiled_flex.build(machine.compile))


flex = CandidateKernel(name="flex", build=_flex, compiled=True)
"""Compiled FlexAttention with the window or the ALiBi slopes of the case."""


def _grouped_mm(x: Tensor, weights: Tensor, chosen: Tensor, gate: Tensor, up: Tensor, down: Tensor, **_: Any) -> Tensor:
    return grouped_experts(x, weights, chosen, ExpertWeights(gate, up, down, None, None, None), "silu")


grouped_mm = CandidateKernel(name="grouped_mm", build=lambda case, machine: _grouped_mm)
"""A mixture of experts that uses torch's grouped matrix products. It supports SwiGLU without biases."""


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


copy = Limit(name=COPY, work=lambda case, machine: (0, 2 * machine.sizes.bytes), prepare=_copy)
read = Limit(name=READ, work=lambda case, machine: (0, machine.sizes.bytes), prepare=_read)
matmul = Limit(name=MATMUL, work=lambda case, machine: (2 * machine.sizes.matmul**3, 0), prepare=_matmul)
"""The reference measurements of the run. They are timed again in the same rounds as the candidates."""
