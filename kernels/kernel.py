"""The type `Kernel`: an op, and what is needed to check, inspect and time the op. Each kernel file ends with a
`Kernel`."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol, TypeVar

import torch
from torch import Tensor

__all__ = ["Case", "Cost", "Draw", "Inputs", "Kernel", "Random", "describe", "distinct_fields"]

T = TypeVar("T")

Inputs = dict[str, Any]
"""The keyword arguments of a public op: tensors and plain values."""


class Case(Protocol):
    """The shape and the options of one call of an op: a NamedTuple of plain values."""

    def _asdict(self) -> dict[str, Any]: ...


def describe(case: Case) -> str:
    """Return a case as text: the fields that differ from their defaults. A tuple of equal values is written as "count ×
    value"."""
    return ", ".join(f"{name}={_short_value(value)}" for name, value in distinct_fields(case).items())


def distinct_fields(case: Case) -> dict[str, Any]:
    """Return the fields of a case that differ from their defaults."""
    defaults: dict[str, Any] = getattr(case, "_field_defaults", {})
    return {name: value for name, value in case._asdict().items() if name not in defaults or value != defaults[name]}


def _short_value(value: Any) -> str:
    if isinstance(value, tuple) and len(value) > 1 and len(set(value)) == 1:
        return f"{len(value)} × {value[0]}"
    return str(value)


class Cost(NamedTuple):
    """The least FLOPs and bytes that an op needs in any implementation.

    `flops` counts a multiplication and an addition as two FLOPs. Attention counts only the (query, key) pairs that are
    not masked. `bytes` counts each input read once and each output written once. An op without a matrix product has 0
    FLOPs, because only its bytes limit it.
    """

    flops: int
    bytes: int
    backward_flops: int = 0
    backward_bytes: int = 0


class Random:
    """Random tensors of one dtype on one device; a seed gives the same values on every device.

    With `shapes_only`, floating-point tensors stay unwritten, because an inspection needs their shapes only.
    """

    def __init__(self, seed: int, dtype: torch.dtype, device: torch.device, *, shapes_only: bool = False) -> None:
        self.dtype, self.device, self.shapes_only = dtype, device, shapes_only
        self.generator = torch.Generator().manual_seed(seed)

    def normal(self, *shape: int, scale: float = 1.0, dtype: torch.dtype | None = None) -> Tensor:
        """Return normally distributed values with standard deviation `scale`."""
        if self.shapes_only:
            return torch.empty(shape, dtype=dtype or self.dtype, device=self.device)
        values = torch.randn(shape, generator=self.generator, dtype=torch.float32) * scale
        return values.to(dtype or self.dtype).to(self.device)

    def integers(self, low: int, high: int, *shape: int, dtype: torch.dtype = torch.int64) -> Tensor:
        """Return uniform integers in [low, high). They are always written, because kernels may use them as
        addresses."""
        return torch.randint(low, high, shape, generator=self.generator).to(dtype).to(self.device)

    def permutation(self, count: int) -> Tensor:
        """Return the integers from 0 to count - 1 in random order."""
        return torch.randperm(count, generator=self.generator).to(self.device)


class Draw(random.Random):
    """Random sizes and options, from which a kernel makes a random `Case`. A seed always gives the same values."""

    def chance(self, probability: float = 0.5) -> bool:
        """Return True with the given probability."""
        return self.random() < probability

    def maybe(self, value: T, probability: float = 0.3) -> T | None:
        """Return `value` with the given probability, else None."""
        return value if self.chance(probability) else None

    def size(self, most: int, least: int = 1) -> int:
        """Return an integer from `least` to `most`. Its logarithm is uniform, so that small sizes are not rare. A third
        of the sizes are next to a multiple of 16, where a kernel may change to another tile."""
        value = int((max(1, least) + 1) * ((most + 1) / (max(1, least) + 1)) ** self.random()) - self.choice((0, 1))
        if self.chance(1 / 3):
            value = round(value / 16) * 16 + self.choice((-1, 0, 1))
        return min(max(value, least), most)


@dataclass(frozen=True, kw_only=True)
class Kernel:
    """An op, and what is needed to check and to measure the op.

    `run(**inputs)` is the public op. `reference(**inputs)` is the same computation in plain torch, in the dtype of its
    inputs. Each returns a tensor or a tuple of tensors. `differentiable` names the inputs whose gradients are checked.
    `cases` are small and have odd sizes; checks use them. `random_case(draw)` returns a small random case;
    `kernels check --fuzz` uses it. `shapes` are the sizes of real models; `inspect` compiles them, and benchmarks time
    them.

    `same_steps(**inputs)` is `reference` with the roundings of the op's algorithm, if they differ. The check counts its
    errors too.

    `unit_stride` names the inputs that the op accepts with a last stride of 1 only. `kernels check --fuzz` gives all
    other tensors random strides.

    `allowances` maps each accepted fault to the reason for which it is accepted. A key is "function: spills",
    "function: serialised", or "function: mma.sync" with the instruction that the compiler used in place of the widest
    one. The instruction is "None" if the compiler used no tensor-core instruction. A key such as
    "function: spills in fp32" accepts the fault in one format only. Any other fault makes `inspect` fail.

    `reads_only`: whether the op writes almost nothing. Its limit is then the rate of reading and not the rate of
    copying.
    """

    name: str
    summary: str
    run: Callable[..., Tensor | tuple[Tensor, ...]]
    reference: Callable[..., Tensor | tuple[Tensor, ...]]
    inputs: Callable[[Any, Random], Inputs]
    cost: Callable[[Any, torch.dtype], Cost]
    cases: Sequence[Any]
    random_case: Callable[[Draw], Any]
    shapes: Sequence[Any]
    same_steps: Callable[..., Tensor | tuple[Tensor, ...]] | None = None
    differentiable: tuple[str, ...] = ()
    unit_stride: tuple[str, ...] = ()
    dtypes: tuple[torch.dtype, ...] = (torch.float16, torch.bfloat16, torch.float32)
    allowances: Mapping[str, str] = field(default_factory=dict)
    reads_only: bool = False

    def formats(self, requested: Iterable[torch.dtype]) -> tuple[torch.dtype, ...]:
        """Return the requested formats that the kernel supports. If the kernel supports none of them, return all of its
        formats."""
        return tuple(dtype for dtype in requested if dtype in self.dtypes) or self.dtypes
