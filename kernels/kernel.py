"""What every kernel file offers at its end: one `Kernel`, which is checked, inspected, profiled and benchmarked."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

__all__ = ["Case", "Cost", "Inputs", "Kernel", "Random", "described"]

Inputs = dict[str, Any]
"""The keyword arguments of a public op: tensors and plain values."""


class Case(Protocol):
    """A shape and its options: a NamedTuple of plain values, so that it prints itself."""

    def _asdict(self) -> dict[str, Any]: ...


def described(case: Case) -> str:
    """A case in words: what differs from the defaults, and equal values in a row as their number × the value."""
    usual: dict[str, Any] = getattr(case, "_field_defaults", {})
    fields = {name: value for name, value in case._asdict().items() if name not in usual or value != usual[name]}
    return ", ".join(f"{name}={_brief(value)}" for name, value in fields.items())


def _brief(value: Any) -> str:
    if isinstance(value, tuple) and len(value) > 1 and len(set(value)) == 1:
        return f"{len(value)} × {value[0]}"
    return str(value)


class Cost(NamedTuple):
    """The work that must be done, whoever does it.

    `flops` counts multiply and add as two, and only unmasked pairs; `bytes` counts each input read once and each
    output written once. 0 FLOPs where the op has no matrix product: then only bytes bound it.
    """

    flops: int
    bytes: int
    backward_flops: int = 0
    backward_bytes: int = 0


class Random:
    """Random tensors of one dtype on one device, the same for the same seed on every device.

    Under `shapes_only` tensors are not written, for an inspection that looks at shapes.
    """

    def __init__(self, seed: int, dtype: torch.dtype, device: torch.device, *, shapes_only: bool = False) -> None:
        self.dtype, self.device, self.shapes_only = dtype, device, shapes_only
        self.generator = torch.Generator().manual_seed(seed)

    def normal(self, *shape: int, scale: float = 1.0, dtype: torch.dtype | None = None) -> Tensor:
        """Normally distributed values of that standard deviation."""
        if self.shapes_only:
            return torch.empty(shape, dtype=dtype or self.dtype, device=self.device)
        values = torch.randn(shape, generator=self.generator, dtype=torch.float32) * scale
        return values.to(dtype or self.dtype).to(self.device)

    def integers(self, low: int, high: int, *shape: int, dtype: torch.dtype = torch.int64) -> Tensor:
        """Uniform integers in [low, high). Always written: they may be addresses."""
        return torch.randint(low, high, shape, generator=self.generator).to(dtype).to(self.device)

    def permutation(self, count: int) -> Tensor:
        """The numbers below `count` in random order."""
        return torch.randperm(count, generator=self.generator).to(self.device)


@dataclass(frozen=True, kw_only=True)
class Kernel:
    """One op with everything needed to prove and to measure it.

    `run(**inputs)` is the public op, `reference(**inputs)` the same in plain torch in whatever dtype it is given; each
    returns a tensor or a tuple of tensors. `differentiable` names the inputs whose gradients are checked; `cases` are
    small and odd, `shapes` are those of real models, which inspection compiles and benchmarks time.
    `allowances` gives reasons by "function: spills" and "function: mma.sync" (or another instruction than the widest,
    "None" for none at all), for one format by "function: spills in fp32"; what is not allowed does not ship.
    """

    name: str
    summary: str
    run: Callable[..., Tensor | tuple[Tensor, ...]]
    reference: Callable[..., Tensor | tuple[Tensor, ...]]
    inputs: Callable[[Any, Random], Inputs]
    cost: Callable[[Any, torch.dtype], Cost]
    cases: Sequence[Any]
    shapes: Sequence[Any]
    differentiable: tuple[str, ...] = ()
    dtypes: tuple[torch.dtype, ...] = (torch.float16, torch.bfloat16, torch.float32)
    allowances: Mapping[str, str] = field(default_factory=dict)

    def formats(self, asked: Iterable[torch.dtype]) -> tuple[torch.dtype, ...]:
        """Those of the formats that are asked for which the kernel knows; all its own where it knows none of them."""
        return tuple(dtype for dtype in asked if dtype in self.dtypes) or self.dtypes
