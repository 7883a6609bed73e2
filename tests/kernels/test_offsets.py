"""Offsets beyond 2³¹ elements, and grids of large batches.

A tensor passes 2³¹ elements by its strides alone: a few rows lie far apart in memory that is reserved and not used.
"""

from __future__ import annotations

import mmap
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from llmbench.errors import CannotRunError
from llmbench.kernels import launching
from llmbench.kernels.attention.attention import attention
from llmbench.kernels.attention.tiles import aligned
from llmbench.kernels.decoding.attention import decode_attention
from llmbench.kernels.decoding.latent import mla_decode
from llmbench.kernels.decoding.merge import combine_splits
from llmbench.kernels.experts.grouped import grouped_matmul
from llmbench.kernels.kernel import Kernel, Random
from llmbench.kernels.loss.linear import linear_cross_entropy
from llmbench.kernels.norm import norm
from llmbench.kernels.registry import KERNELS, load_kernel

FAR = 2**31  # elements
GAP = 2**20  # elements of 8 bytes between two tensors
CONFIG = launching.Config(num_warps=4)
CPU = torch.device("cpu")
NO_RESERVE = 0x4000  # MAP_NORESERVE: the system does not count unused pages

pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="the memory is reserved on the CPU")


class Memory:
    """A range of virtual memory for tensors whose rows are far apart. An offset that loses its 32nd bit becomes
    negative, so tensors begin in the middle: a wrong offset then reads zeros, and does not end the process."""

    def __init__(self) -> None:
        flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | NO_RESERVE
        self.bytes = mmap.mmap(-1, 8 * (2 * FAR + 64 * GAP), flags=flags)
        self.bytes.madvise(mmap.MADV_NOHUGEPAGE)
        self.used = 0

    def spread(self, x: Tensor, dim: int) -> Tensor:
        """Return a copy of x whose last element along `dim` is 2³¹ elements or more after the first."""
        strides = list(torch.empty(x.shape, device="meta").stride())
        strides[dim] = (FAR // (x.shape[dim] - 1) // 8 + 1) * 8
        offset = (FAR + GAP * self.used) * 8 // x.element_size()
        self.used += 1
        copy = torch.frombuffer(self.bytes, dtype=x.dtype).as_strided(x.shape, strides, offset)
        return copy.copy_(x)

    def clear(self) -> None:
        """Forget the tensors."""
        self.used = 0
        self.bytes.madvise(mmap.MADV_DONTNEED)


@pytest.fixture(scope="module")
def memory() -> Memory:
    return Memory()


def has_rows(x: Any, dim: int) -> bool:
    """Whether x is a tensor with three or more rows along `dim`, which is not its last dimension.

    The stride of only two rows would itself exceed 32 bits, and Triton would compute with 64."""
    return isinstance(x, Tensor) and x.dim() > dim + 1 and x.shape[dim] > 2 and x.numel() > 0


def outputs_and_gradients(kernel: Kernel, inputs: dict[str, Any], place: Callable[[Tensor], Tensor]) -> list[Tensor]:
    """Run forward and backward on inputs and incoming gradients that `place` has placed in memory."""
    inputs = {name: place(x.detach()) if isinstance(x, Tensor) else x for name, x in inputs.items()}
    leaves = [inputs[name].requires_grad_() for name in kernel.differentiable if isinstance(inputs.get(name), Tensor)]
    outputs = kernel.run(**inputs)
    outputs = outputs if isinstance(outputs, tuple) else (outputs,)
    dependent = [out for out in outputs if out.requires_grad]
    if not dependent:
        return list(outputs)
    random = Random(1, torch.float32, CPU, shapes_only=launching.capturing())
    incoming = [place(random.normal(*out.shape, dtype=out.dtype)) for out in dependent]
    return [*outputs, *torch.autograd.grad(dependent, leaves, incoming, materialize_grads=True)]


CASES: dict[str, list[dict[str, Any]]] = {
    "rms_norm": [
        {"rows": 3, "width": 37, "weights": "w", "residual": True},
        {"rows": 4, "width": 9, "weights": "w", "heads": 5, "residual": True},
    ],
    "layer_norm": [{"rows": 3, "width": 24, "weights": "wbh", "heads": 3}],
    "rope": [{"batch": 3, "length": 3, "q_heads": 5, "k_heads": 3, "head_dim": 24, "own": True, "rotary_dim": 16}],
    "attention": [
        {"batch": 3, "queries": 5, "keys": 9, "head_dim": 16, "sinks": True},
        {"batch": 3, "heads": 3, "kv_heads": 3, "queries": 3, "keys": 5, "head_dim": 72},
        {"heads": 3, "kv_heads": 3, "head_dim": 16, "packed": ((3, 3), (4, 7))},
    ],
    "decode_attention": [
        {"lengths": (9, 4, 3), "heads": 3, "kv_heads": 3, "head_dim": 16, "queries": 3, "splits": 2},
        {"lengths": (9, 4, 3), "heads": 3, "kv_heads": 3, "head_dim": 16, "page": 4, "storage": "int8"},
        {"lengths": (9, 4, 3), "heads": 1, "kv_heads": 1, "head_dim": 16, "layout": "positions"},
    ],
    "mla_decode": [
        {"lengths": (9, 4, 3), "heads": 3, "latent": 32, "rope": 16, "queries": 3, "splits": 2, "apart": True},
        {"lengths": (9, 4, 3), "heads": 3, "latent": 32, "rope": 16, "page": 4, "storage": "int8"},
    ],
    "glu": [{"rows": 3, "width": 37}],
    "moe_routing": [{"tokens": 5, "experts": 8, "k": 2, "scores": "softmax"}],
    "grouped_matmul": [{"rows": 21, "experts": 3, "inner": 37, "width": 45}],
    "moe": [{"tokens": 5, "hidden": 20, "width": 20, "experts": 3, "k": 2, "bias": True}],
    "cross_entropy": [{"tokens": 4, "vocabulary": 50, "reduction": "none"}],
    "linear_cross_entropy": [
        {"tokens": 4, "hidden": 16, "vocabulary": 40, "reduction": reduction} for reduction in ("none", "mean")
    ],
}
"""Small cases of a kernel, by the fields of its `Case`. Each dimension of an input has three rows in a case.

A kernel that is not listed is tested with its own cases.
"""


def case_of(kernel: Kernel, fields: dict[str, Any]) -> Any:
    return type(kernel.cases[0])(**fields)


def check_far_strides(kernel: Kernel, case: Any, memory: Memory) -> None:
    """Compare the results with those of contiguous inputs, bit for bit, forward and backward."""
    dtype = kernel.formats([torch.float16])[0]
    inputs = kernel.inputs(case, Random(0, dtype, CPU))
    expected = outputs_and_gradients(kernel, inputs, torch.clone)
    for dim in range(3):
        if not any(has_rows(x, dim) for x in inputs.values()):
            continue
        memory.clear()
        results = outputs_and_gradients(
            kernel, inputs, lambda x, dim=dim: memory.spread(x, dim) if has_rows(x, dim) else x.clone()
        )
        for one, other in zip(results, expected, strict=True):
            torch.testing.assert_close(one, other, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("name", KERNELS)
def test_strides_beyond_32_bits_change_nothing(name: str, memory: Memory) -> None:
    kernel = load_kernel(name)
    cases = [case_of(kernel, fields) for fields in CASES[name]] if name in CASES else kernel.cases
    for case in cases:
        check_far_strides(kernel, case, memory)


def test_wide_rows_may_be_far_apart(memory: Memory, monkeypatch: pytest.MonkeyPatch) -> None:
    """The norm kernels for rows that do not fit in registers."""
    monkeypatch.setattr(norm, "MAX_FORWARD_WIDTH", 8)
    monkeypatch.setattr(norm, "MAX_BACKWARD_BYTES", 8)
    for name in ("rms_norm", "layer_norm"):
        kernel = load_kernel(name)
        check_far_strides(kernel, case_of(kernel, CASES[name][0]), memory)


# Grids

LARGE: dict[str, list[dict[str, Any]]] = {
    "rms_norm": [{"rows": 2, "width": 8, "weights": "wh", "heads": 70_000}, {"rows": 70_000, "width": 8}],
    "layer_norm": [{"rows": 1, "width": 16_640, "weights": "wbh", "heads": 70_000}],
    "rope": [{"batch": 70_000, "length": 1, "q_heads": 2, "k_heads": 1, "head_dim": 16}],
    "attention": [
        {"batch": 70_000, "heads": 2, "kv_heads": 1, "queries": 2, "keys": 2, "head_dim": 16, "sinks": True},
        {"heads": 1, "kv_heads": 1, "queries": 10_000_000, "keys": 10_000_000, "head_dim": 16},
    ],
    "decode_attention": [{"lengths": (5,) * 70_000, "heads": 4, "kv_heads": 2, "head_dim": 16, "splits": 2}],
    "mla_decode": [{"lengths": (5,) * 70_000, "heads": 2, "latent": 32, "rope": 16, "splits": 2}],
    "glu": [{"rows": 70_000, "width": 37}],
    "moe_routing": [{"tokens": 2_000_000, "experts": 8, "k": 2, "scores": "softmax"}],
    "grouped_matmul": [{"rows": 2_000_000, "experts": 300, "inner": 16, "width": 16}],
    "moe": [{"tokens": 2_000_000, "hidden": 16, "width": 16, "experts": 300, "k": 2, "bias": True}],
    "cross_entropy": [{"tokens": 70_000, "vocabulary": 50}],
    "linear_cross_entropy": [{"tokens": 10_000_000, "hidden": 16, "vocabulary": 16, "reduction": "none"}],
}
"""Cases with more sequences, heads, tokens or rows than a grid may have programs in y and z.

A kernel that is not listed is tested with its `shapes` only.
"""


@pytest.mark.parametrize("name", KERNELS)
def test_large_batches_fit_in_a_grid(name: str) -> None:
    """Only x may grow with the batch, the heads and the tokens: y has at most as many programs as at small sizes of a
    model, and no kernel uses z."""
    kernel = load_kernel(name)
    dtype = kernel.formats([torch.bfloat16])[0]
    for case in (*(case_of(kernel, fields) for fields in LARGE.get(name, ())), *kernel.shapes):
        with launching.captured(90) as capture:
            outputs_and_gradients(kernel, kernel.inputs(case, Random(0, dtype, CPU, shapes_only=True)), torch.detach)
        for launch in capture.launches:
            assert len(launch.grid) <= 2, launch.name
            assert launch.grid[1:] <= (600,), (launch.name, launch.grid)


def test_a_grid_or_a_dimension_that_is_too_large_is_refused() -> None:
    with launching.captured(90), pytest.raises(CannotRunError, match=r"needs a grid of \(1, 65536\) programs"):
        launching.launch(combine_splits, (1, 65536), CONFIG, torch.zeros(1))
    long = torch.zeros(1).expand(2**31)
    with launching.captured(90), pytest.raises(CannotRunError, match="has a dimension above"):
        launching.launch(combine_splits, (1, 1), CONFIG, long)


@pytest.mark.parametrize("op", [decode_attention, mla_decode])
def test_more_splits_than_the_merge_supports_are_refused(op: Any) -> None:
    kernel = load_kernel(op.__name__)
    inputs = kernel.inputs(kernel.cases[0], Random(0, torch.float32, CPU))
    with pytest.raises(ValueError, match="must be from 0 to 128"):
        op(**{**inputs, "splits": 129})


def test_sizes_whose_offsets_do_not_fit_are_refused() -> None:
    """Views of one element stand for large tensors: nothing is read."""
    one = torch.zeros((), dtype=torch.float16)
    with pytest.raises(ValueError, match="the heads of a token must have fewer than"):
        attention(*[one.expand(1, 2**20, 1, 16)] * 3)
    with pytest.raises(ValueError, match=r"fewer than 2³¹ queries in all"):
        attention(one.expand(1, 64, 2**26, 16), *[one.expand(1, 1, 2**26, 16)] * 2)
    with pytest.raises(ValueError, match="a sequence has at most"):
        attention(*[one.expand(1, 1, 2**30 + 1, 16)] * 3)
    with pytest.raises(ValueError, match="slots; at most"):
        decode_attention(
            one.expand(1, 1, 1, 16), *[one.expand(1, 1, 2**30 + 1, 16)] * 2, torch.ones(1, dtype=torch.int32)
        )
    with pytest.raises(ValueError, match="a matrix has at most"):
        grouped_matmul(one.expand(3, 2**23), one.expand(2, 4, 2**23), torch.tensor([0, 1, 3], dtype=torch.int32))


# Addresses


def off_by(count: int, x: Tensor) -> Tensor:
    """Return a copy of x whose address is `count` bytes after a multiple of 16, with storage offset 0."""
    memory = bytearray(x.numel() * x.element_size() + 32)
    start = -torch.frombuffer(memory, dtype=torch.uint8).data_ptr() % 16 + count
    copy = torch.frombuffer(memory, dtype=x.dtype, offset=start, count=x.numel()).view(x.shape)
    assert copy.storage_offset() == 0
    assert copy.data_ptr() % 16 == count
    return copy.copy_(x)


def test_tma_needs_an_address_that_is_a_multiple_of_16_bytes() -> None:
    x = torch.randn(1, 2, 3, 16)
    assert aligned(off_by(0, x)).data_ptr() % 16 == 0
    for count in (2, 4, 8):
        moved = off_by(count, x.half())
        assert launching.fits_descriptor(moved) is False
        copy = aligned(moved)
        assert copy.data_ptr() % 16 == 0
        assert torch.equal(copy, moved)
    same = off_by(0, x)
    assert aligned(same) is same


def test_tma_needs_strides_below_2_to_the_40_bytes() -> None:
    x = torch.zeros(16).as_strided((1, 1, 1, 16), (2**38, 16, 16, 1))
    assert not launching.fits_descriptor(x)
    assert launching.fits_descriptor(x.as_strided(x.shape, (2**38 - 4, 16, 16, 1)))


@pytest.mark.parametrize(("moved", "tma"), [(0, True), (4, False), (8, False)])
def test_the_loss_of_a_head_reads_by_tma_only_aligned_matrices(moved: int, tma: bool) -> None:
    inputs = {"x": off_by(moved, torch.randn(8, 16)), "weight": torch.randn(24, 16), "targets": torch.zeros(8).long()}
    with launching.captured(90) as capture:
        linear_cross_entropy(**inputs, reduction="none")
    assert [launch.arguments["TMA"] for launch in capture.launches if launch.name == "vocabulary_tiles"] == [tma]
