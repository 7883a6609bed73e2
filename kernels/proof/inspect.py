"""Compile kernels without a GPU and inspect the result: registers, spills, shared memory, tensor-core instructions, hot
loops.

Each shape of a kernel runs under `captured()`, forward and backward, once for every candidate configuration of its
launchers. The recorded launches are then compiled for an architecture and disassembled.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from multiprocessing import get_context
from typing import Any, NamedTuple

import torch
import triton
from torch import Tensor
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from triton.runtime.jit import mangle_type
from triton.tools.tensor_descriptor import TensorDescriptor

from llmbench.errors import CannotRunError
from llmbench.kernels.formats import short
from llmbench.kernels.kernel import Kernel, Random, describe
from llmbench.kernels.launching import Config, Launch, captured, interpreted, preferring
from llmbench.kernels.proof.machine_code import Loop, disassemble, hot_loops, resources
from llmbench.kernels.registry import load_kernel

__all__ = ["ARCHITECTURES", "Compiled", "Limits", "faults_of", "inspect", "launches"]


class Limits(NamedTuple):
    """The resources of a multiprocessor, and the tensor-core instruction that matrix products should use."""

    shared_bytes: int
    shared_bytes_per_block: int
    warps: int
    blocks: int
    instruction: str


ARCHITECTURES = {
    80: Limits(164 << 10, 163 << 10, 64, 32, "mma.sync"),
    90: Limits(228 << 10, 227 << 10, 64, 32, "wgmma"),
    100: Limits(228 << 10, 227 << 10, 64, 32, "tcgen05.mma"),
}
"""Source: CUDA C++ programming guide, table of technical specifications per compute capability."""

REGISTERS = 65536  # 32-bit registers per multiprocessor; a warp gets a multiple of 256
INSTRUCTIONS = ("tcgen05.mma", "wgmma", "mma.sync")


@dataclass(frozen=True, kw_only=True)
class Compiled:
    """A compiled kernel function: one configuration for one shape, format and architecture. All fields are plain
    values.

    `shipped`: whether this configuration runs by default. `blocks`: the number of blocks that fit on a multiprocessor
    at the same time. `instruction`: the widest tensor-core instruction in the PTX, or None. `loops`: the hot
    loops, on sm_90 only. `faults`: faults that make `inspect` fail. `allowed`: faults that the kernel accepts, each
    with its reason.
    """

    kernel: str
    function: str
    case: str
    dtype: str
    config: str
    note: str
    arch: int
    shipped: bool
    num_warps: int
    num_stages: int
    registers: int = 0
    spilled_bytes: int = 0
    shared_bytes: int = 0
    instruction: str | None = None
    blocks: int = 0
    loops: tuple[Loop, ...] = ()
    faults: tuple[str, ...] = ()
    allowed: tuple[str, ...] = ()

    @property
    def occupancy(self) -> float:
        """Return the resident warps as a share of the most warps that a multiprocessor can have."""
        return self.blocks * self.num_warps / ARCHITECTURES[self.arch].warps


def shapes_of(
    names: Sequence[str], arches: Sequence[int], dtypes: Sequence[torch.dtype]
) -> list[tuple[str, int, torch.dtype, int]]:
    """Return the shapes that `inspect` compiles: kernel, index of the shape, number format and architecture."""
    return [
        (name, index, dtype, arch)
        for arch in arches
        for name in names
        for index in range(len(load_kernel(name).shapes))
        for dtype in load_kernel(name).formats(dtypes)
    ]


def inspect(
    names: Sequence[str],
    arches: Sequence[int],
    dtypes: Sequence[torch.dtype],
    workers: int = 1,
    *,
    shipped: bool = False,
) -> Iterator[Compiled]:
    """Compile every configuration of every shape of the named kernels in `workers` processes. With `shipped`, compile
    only the shipped configurations.

    Raises CannotRunError if kernels are interpreted, because nothing is compiled then.
    """
    if interpreted():
        raise CannotRunError("TRITON_INTERPRET is set, so kernels are interpreted and not compiled", hint="unset it")
    work = [(*shape, shipped) for shape in shapes_of(names, arches, dtypes)]
    if workers == 1:
        yield from (row for job in work for row in _compile_shape(*job))
        return
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
        for rows in [pool.submit(_compile_shape, *job) for job in work]:
            yield from rows.result()


def _compile_shape(name: str, index: int, dtype: torch.dtype, arch: int, shipped: bool) -> list[Compiled]:
    kernel = load_kernel(name)
    case = kernel.shapes[index]
    try:
        return [
            _compiled(kernel, case, dtype, launch, arch)
            for launch in launches(kernel, case, dtype, arch)
            if launch.shipped or not shipped
        ]
    except CannotRunError as refusal:  # The op does not support this architecture, which is not a fault.
        refused = _row(kernel, case, dtype, name, Config(num_warps=0, num_stages=0), arch)
        return [replace(refused, config="", allowed=(f"refused: {refusal}",))]


def launches(kernel: Kernel, case: Any, dtype: torch.dtype, arch: int) -> Iterator[Launch]:
    """Yield every distinct launch of one case, forward and backward, over all configurations."""
    seen: set[str] = set()
    choices, index, count = [dict[str, int]()], 0, 1
    while index < count:
        with captured(arch) as capture, preferring(choices[index]):
            _run_once(kernel, case, dtype)
        count = max([count, *capture.candidates.values()])
        choices.append(dict.fromkeys(capture.candidates, index + 1))
        index += 1
        for launch in capture.launches:
            key = repr((launch.name, str(launch.config), _signature(launch)))
            if key not in seen:
                seen.add(key)
                yield launch


def _run_once(kernel: Kernel, case: Any, dtype: torch.dtype) -> None:
    """Run the forward and backward pass of a case on tensors without values."""
    inputs = kernel.inputs(case, Random(0, dtype, torch.device("cpu"), shapes_only=True))
    leaves = [inputs[name].requires_grad_() for name in kernel.differentiable if isinstance(inputs.get(name), Tensor)]
    out = kernel.run(**inputs)
    if leaves:
        dependent = [o for o in (out if isinstance(out, tuple) else (out,)) if o.requires_grad]
        torch.autograd.grad(dependent, leaves, [torch.empty_like(o) for o in dependent])


_TYPES = {
    torch.float64: "fp64",
    torch.float32: "fp32",
    torch.float16: "fp16",
    torch.bfloat16: "bf16",
    torch.float8_e4m3fn: "fp8e4nv",
    torch.float8_e5m2: "fp8e5",
    torch.int64: "i64",
    torch.int32: "i32",
    torch.int8: "i8",
    torch.uint8: "u8",
    torch.bool: "i1",
}


def _signature(launch: Launch) -> tuple[dict[str, str], dict[tuple[int, ...], Any], dict[tuple[int, ...], Any]]:
    """Return the types, constants and divisibilities of the arguments. A launch on a GPU would compile the kernel for
    these.

    The values 1 and None are constants. Addresses and integers that are divisible by 16 are marked as divisible.
    """
    types: dict[str, str] = {}
    constants: dict[tuple[int, ...], Any] = {}
    attributes: dict[tuple[int, ...], Any] = {}
    for position, parameter in enumerate(launch.kernel.params):
        value = launch.arguments[parameter.name]
        if parameter.is_constexpr or value is None or (type(value) is int and value == 1):
            types[parameter.name] = "constexpr"
            constants[(position,)] = value
            continue
        if isinstance(value, Tensor):
            types[parameter.name] = "*" + _TYPES[value.dtype]
            divisible = value.data_ptr() % 16 == 0
        elif isinstance(value, TensorDescriptor):
            types[parameter.name], divisible = mangle_type(value), False
        elif isinstance(value, bool):
            types[parameter.name], divisible = "i1", False
        elif isinstance(value, int):
            types[parameter.name] = "i32" if -(2**31) <= value < 2**31 else "i64"
            divisible = value % 16 == 0
        else:
            types[parameter.name], divisible = "fp32", False
        if divisible:
            attributes[(position,)] = [["tt.divisibility", 16]]
    return types, constants, attributes


def _row(
    kernel: Kernel, case: Any, dtype: torch.dtype, function: str, config: Config, arch: int, shipped: bool = False
) -> Compiled:
    return Compiled(
        kernel=kernel.name,
        function=function,
        case=describe(case),
        dtype=str(dtype).removeprefix("torch."),
        config=str(config),
        note=config.note,
        arch=arch,
        shipped=shipped,
        num_warps=config.num_warps,
        num_stages=config.num_stages,
    )


def _compiled(kernel: Kernel, case: Any, dtype: torch.dtype, launch: Launch, arch: int) -> Compiled:
    config = launch.config
    row = _row(kernel, case, dtype, launch.name, config, arch, launch.shipped)
    types, constants, attributes = _signature(launch)
    source = ASTSource(launch.kernel, signature=types, constexprs=constants, attrs=attributes)
    options = {"num_warps": config.num_warps, "num_stages": config.num_stages, "enable_fp_fusion": True}
    try:
        result = triton.compile(source, target=GPUTarget("cuda", arch, 32), options=options)
    # compilers raise many types of errors, and one failure must not stop the inspection of other kernels
    except Exception as problem:
        return replace(row, faults=(f"does not compile: {str(problem).strip().splitlines()[-1]}",))
    registers, spilled = resources(result.asm["cubin"])
    shared = int(result.metadata.shared)
    ptx = str(result.asm["ptx"])
    row = replace(
        row,
        registers=registers,
        spilled_bytes=spilled,
        shared_bytes=shared,
        instruction=next((name for name in INSTRUCTIONS if name in ptx), None),
        blocks=_blocks(ARCHITECTURES[arch], registers, shared, int(result.metadata.num_warps)),
        # the model of cycles has the rates of sm_90, and would give wrong figures for other architectures
        loops=tuple(hot_loops(disassemble(result.asm["cubin"]), int(result.metadata.num_warps))) if arch == 90 else (),
    )
    faults = faults_of(row, matrix="tt.dot" in str(result.asm["ttir"]))
    reasons = {key: kernel.allowances.get(key) or kernel.allowances.get(f"{key} in {short(dtype)}") for key in faults}
    return replace(
        row,
        faults=tuple(text for key, text in faults.items() if reasons[key] is None),
        allowed=tuple(f"{text}: {reasons[key]}" for key, text in faults.items() if reasons[key] is not None),
    )


def _blocks(limits: Limits, registers: int, shared_bytes: int, num_warps: int) -> int:
    """Return the number of blocks that fit on one multiprocessor at the same time."""
    per_warp = -(-registers * 32 // 256) * 256
    by_registers = REGISTERS // per_warp // num_warps
    by_shared = limits.shared_bytes // (shared_bytes + 1024)  # CUDA reserves 1 KiB per block
    return max(0, min(by_registers, by_shared, limits.warps // num_warps, limits.blocks))


def faults_of(row: Compiled, *, matrix: bool) -> dict[str, str]:
    """Return the faults of a compiled kernel by key. `Kernel.allowances` uses these keys to accept faults."""
    limits = ARCHITECTURES[row.arch]
    faults = {}
    if row.shared_bytes > limits.shared_bytes_per_block:
        faults["shared memory"] = f"shared memory {row.shared_bytes:,} B exceeds {limits.shared_bytes_per_block:,} B"
    if row.arch != 90:  # kernels are tuned for Hopper; elsewhere they only have to compile and fit
        return faults
    if row.spilled_bytes:
        few = " at most 64 B" if row.spilled_bytes <= 64 else ""
        faults[f"{row.function}: spills{few}"] = f"spills {row.spilled_bytes} B per thread"
    expected = limits.instruction if matrix else None
    if row.instruction != expected:
        faults[f"{row.function}: {row.instruction}"] = f"uses {row.instruction} instead of {expected}"
    serialised = [f"{loop.products} products, {loop.waits} waits" for loop in row.loops if loop.serialised]
    if serialised and row.shipped:  # one ptxas may serialise a candidate that another one does not serialise
        faults[f"{row.function}: serialised"] = f"serialises matrix products: {', '.join(serialised)}"
    return faults
