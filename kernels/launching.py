"""Launch a Triton kernel in one of four modes: on a GPU, interpreted, captured, poisoned.

A launcher allocates its buffers with `empty`, picks a configuration with `choose`, and calls `launch`.

- On a GPU, the kernel runs.
- On a CPU, the kernel runs in Triton's interpreter only (`TRITON_INTERPRET=1` before this package is imported).
- Under `captured()`, nothing runs. The launches are recorded, and `proof/inspect.py` compiles them without a GPU.
- Under `poisoned()`, every buffer starts as NaN, so that a check fails if a kernel leaves an element unwritten. A
  margin around each buffer shows whether a kernel writes past its ends.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
import triton
from torch import Tensor

from llmbench.errors import CannotRunError

__all__ = [
    "Capture",
    "Config",
    "Launch",
    "OutsideBufferError",
    "architecture",
    "captured",
    "capturing",
    "choose",
    "empty",
    "fits_descriptor",
    "interpreted",
    "launch",
    "multiprocessors",
    "poisoned",
    "preferring",
]

Grid = tuple[int, ...]

MAX_GRID = (2**31 - 1, 65535, 65535)
"""The most programs in each dimension of a CUDA grid. Source: CUDA C++ programming guide, technical specifications."""

MAX_LENGTH = 2**31 - 2**16
"""The longest dimension of a tensor. Indices that are rounded up to whole tiles still fit in 32 bits."""


class OutsideBufferError(Exception):
    """A kernel wrote outside of a buffer of `empty`."""


class Config(Mapping[str, int]):
    """A configuration of a kernel: a block size for each constexpr parameter, the number of warps, and the number of
    pipeline stages.

    `note` gives the reason for the configuration: registers, shared memory, occupancy.
    """

    def __init__(self, *, num_warps: int, num_stages: int = 1, note: str = "", **blocks: int) -> None:
        self.num_warps, self.num_stages, self.note, self.blocks = num_warps, num_stages, note, blocks

    def __getitem__(self, name: str) -> int:
        return self.blocks[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.blocks)

    def __len__(self) -> int:
        return len(self.blocks)

    def __str__(self) -> str:
        sizes = " ".join(f"{name}={value}" for name, value in self.blocks.items())
        return f"{sizes} warps={self.num_warps} stages={self.num_stages}".lstrip()


@dataclass(frozen=True)
class Launch:
    """A recorded launch: the kernel, its arguments by name, the configuration, and the grid.

    `shipped`: whether the configuration is the first candidate, which runs unless `preferring` names another.
    """

    kernel: Any
    arguments: dict[str, Any]
    config: Config
    grid: Grid
    shipped: bool = True

    @property
    def name(self) -> str:
        """The kernel function's name."""
        return str(self.kernel.__name__)


@dataclass
class Capture:
    """The recorded launches, and the number of candidate configurations of each kernel."""

    arch: int
    launches: list[Launch] = field(default_factory=list)
    candidates: dict[str, int] = field(default_factory=dict)


MARGIN = 256
"""Elements before and after a poisoned buffer. The buffer's address stays a multiple of 16 bytes, as TMA needs."""

_capture: Capture | None = None
_poisoned: list[Tensor] | None = None
_preferred: dict[str, int] = {}
_others = 0


def interpreted() -> bool:
    """Whether the kernels of this process run in Triton's interpreter, on CPU tensors."""
    return not isinstance(_probe, triton.runtime.JITFunction)


@triton.jit
def _probe(x):
    pass


def architecture(device: torch.device) -> int:
    """Return the compute capability as one number, such as 80, 90 or 100. The interpreter counts as 90."""
    if _capture is not None:
        return _capture.arch
    if device.type == "cuda":
        major, minor = torch.cuda.get_device_capability(device)
        return 10 * major + minor
    return 90


def multiprocessors(device: torch.device) -> int:
    """Return the number of multiprocessors of the GPU. Without a GPU, return the number of an A100, H100 or B200,
    depending on the architecture."""
    if _capture is None and device.type == "cuda":
        return int(torch.cuda.get_device_properties(device).multi_processor_count)
    return {80: 108, 90: 132}.get(architecture(device), 148)


def choose(name: str, candidates: Sequence[Config]) -> Config:
    """Return the configuration of the kernel `name`: the first candidate, unless `preferring` names another."""
    if _capture is not None:
        _capture.candidates[name] = max(len(candidates), _capture.candidates.get(name, 0))
    return candidates[min(_preferred.get(name, _others), len(candidates) - 1)]


def empty(*shape: int, like: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    """Return an unwritten buffer on the device of `like`. Under `poisoned()`, the buffer and a margin around it are
    filled with NaN, or with -1 if its dtype is an integer."""
    dtype = dtype or like.dtype
    if _poisoned is None:
        return torch.empty(shape, device=like.device, dtype=dtype)
    poison = float("nan") if dtype.is_floating_point else -1
    memory = torch.full((math.prod(shape) + 2 * MARGIN,), poison, device=like.device, dtype=dtype)
    _poisoned.append(memory)
    return memory[MARGIN : len(memory) - MARGIN].view(shape)


def fits_descriptor(x: Tensor) -> bool:
    """Whether a TMA descriptor can describe x: its last stride is 1, its address and its other strides are multiples of
    16 bytes, and no stride is 0 or at least 2⁴⁰ bytes.

    The address counts, and not the storage offset, because memory that torch did not allocate can begin anywhere.
    """
    *outer, last = x.stride()
    whole = x.data_ptr() % 16 == 0 and not any(stride * x.element_size() % 16 for stride in outer)
    return whole and last == 1 and all(0 < stride * x.element_size() < 1 << 40 for stride in outer)


def _check_sizes(kernel: Any, grid: Grid, args: Sequence[Any]) -> None:
    """Raise CannotRunError if the grid or a dimension of a tensor exceeds its limit.

    Kernels count rows, columns and tiles in 32 bits. Only products with strides, which give offsets, have 64 bits.
    """
    if any(programs > most for programs, most in zip(grid, MAX_GRID, strict=False)):
        text = f"`{kernel.__name__}` needs a grid of {grid} programs; CUDA allows at most {MAX_GRID[: len(grid)]}"
        raise CannotRunError(text, hint="split the batch, or the sequence, into several calls")
    for x in args:  # `numel` is tested first, because it is faster to read than `shape`
        if isinstance(x, Tensor) and x.numel() > MAX_LENGTH and max(x.shape) > MAX_LENGTH:
            text = f"a tensor of shape {tuple(x.shape)} has a dimension above {MAX_LENGTH:,}"
            raise CannotRunError(f"`{kernel.__name__}`: {text}", hint="split this dimension into several calls")


def launch(kernel: Any, grid: Grid, config: Config, *args: Any, **constants: Any) -> None:
    """Run `kernel` on `grid` with positional `args` and constexpr `constants`. `config` gives the block sizes.

    Raises CannotRunError for CPU tensors outside the interpreter, and for sizes above the limits.
    """
    _check_sizes(kernel, grid, args)
    constants.update(config)
    if _capture is not None:
        named = dict(zip(kernel.arg_names, args, strict=False))
        shipped = not any((*_preferred.values(), _others))
        _capture.launches.append(Launch(kernel, named | constants, config, grid, shipped=shipped))
        return
    device = next(value.device for value in args if isinstance(value, Tensor))
    if interpreted():
        if device.type != "cpu":
            raise CannotRunError(
                "TRITON_INTERPRET=1 is set, so kernels take CPU tensors only", hint="unset it to use the GPU"
            )
        kernel[grid](*args, **constants)
        return
    if device.type != "cuda":
        raise CannotRunError(
            f"the Triton kernel `{kernel.fn.__name__}` needs a GPU",
            hint="TRITON_INTERPRET=1 runs it on a CPU, slowly, to check results",
        )
    if 0 in grid:
        return
    with torch.cuda.device(device):
        triton.set_allocator(_workspace)
        kernel[grid](
            *args,
            **constants,
            num_warps=config.num_warps,
            num_stages=config.num_stages,
            enable_fp_fusion=True,  # Triton 3.10 changes the default of this option
        )


def _workspace(size: int, alignment: int, stream: int | None) -> Tensor:
    """Allocate the memory that a kernel needs for its tensor descriptors. torch's allocator aligns to 512 bytes,
    respects the order of the stream, and can be captured in a CUDA graph."""
    return torch.empty(size, dtype=torch.int8, device="cuda")


@contextmanager
def captured(arch: int) -> Iterator[Capture]:
    """Record launches for compute capability `arch` instead of running them."""
    global _capture
    assert _capture is None, "captures do not nest"
    _capture = Capture(arch)
    try:
        yield _capture
    finally:
        _capture = None


def capturing() -> bool:
    """Whether launches are recorded and not run. If so, callers also skip torch's large matrix products."""
    return _capture is not None


@contextmanager
def poisoned() -> Iterator[None]:
    """Fill every new buffer, and a margin around it, with NaN, or with -1 if its dtype is an integer.

    Raises OutsideBufferError at the end if a kernel has written into a margin.
    """
    global _poisoned
    before, _poisoned = _poisoned, []
    try:
        yield
        for memory in _poisoned:
            for margin in (memory[:MARGIN], memory[-MARGIN:]):
                untouched = margin.isnan() if margin.is_floating_point() else margin == -1
                if not untouched.all():
                    size = len(memory) - 2 * MARGIN
                    raise OutsideBufferError(f"a kernel wrote past an end of a buffer of {size} {memory.dtype}")
    finally:
        _poisoned = before


@contextmanager
def preferring(choices: Mapping[str, int], *, others: int = 0) -> Iterator[None]:
    """Make `choose` return other candidates than the first. `choices` maps the name of a kernel to the index of a
    candidate. `others` is the index for all other kernels. An index past the end means the last candidate."""
    global _preferred, _others
    before, _preferred, _others = (_preferred, _others), dict(choices), others
    try:
        yield
    finally:
        _preferred, _others = before
