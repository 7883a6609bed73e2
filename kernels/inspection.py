"""What the compiler makes of a kernel, without a GPU: registers, spills, shared memory, tensor-core instructions.

Each shape of a kernel is run under `captured()`, forward and backward, once for every configuration that its
launchers choose from; the noted launches are compiled for the wanted architecture and disassembled.
"""

from __future__ import annotations

import re
import subprocess
import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
import triton
from torch import Tensor
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from llmbench.errors import CannotRunError
from llmbench.kernels.kernel import Kernel, Random
from llmbench.kernels.launching import Launch, captured, interpreted, preferring

__all__ = ["ARCHITECTURES", "Compiled", "Limits", "compiled", "faults", "launches"]


class Limits(NamedTuple):
    """What one multiprocessor has, and the tensor-core instruction that a matrix kernel should use."""

    shared_bytes: int
    shared_bytes_a_block: int
    warps: int
    blocks: int
    instruction: str


ARCHITECTURES = {
    80: Limits(164 << 10, 163 << 10, 64, 32, "mma.sync"),
    90: Limits(228 << 10, 227 << 10, 64, 32, "wgmma"),
    100: Limits(228 << 10, 227 << 10, 64, 32, "tcgen05.mma"),
}
"""CUDA C++ programming guide, table of technical specifications per compute capability."""

REGISTERS = 65536  # a multiprocessor, 32 bits each, given out to warps in units of 256
INSTRUCTIONS = ("tcgen05.mma", "wgmma", "mma.sync")


@dataclass(frozen=True)
class Compiled:
    """One kernel function in one configuration for one architecture. `blocks` is the occupancy in blocks a
    multiprocessor; `instruction` the widest tensor-core instruction in its PTX, None without a matrix product."""

    launch: Launch
    arch: int
    registers: int
    spilled: int
    shared_bytes: int
    instruction: str | None
    matrix: bool
    blocks: int

    @property
    def occupancy(self) -> float:
        """Resident warps as a share of those a multiprocessor can hold."""
        return self.blocks * self.launch.config.num_warps / ARCHITECTURES[self.arch].warps


def launches(kernel: Kernel, case: Any, dtype: torch.dtype, arch: int) -> Iterator[Launch]:
    """Every different launch of one case, forward and backward, over all configurations."""
    seen: set[str] = set()
    choices, index, most = [dict[str, int]()], 0, 1
    while index < most:
        with captured(arch) as capture, preferring(choices[index]):
            _once(kernel, case, dtype)
        most = max([most, *capture.candidates.values()])
        choices.append(dict.fromkeys(capture.candidates, index + 1))
        index += 1
        for launch in capture.launches:
            key = repr((launch.name, str(launch.config), _signature(launch)))
            if key not in seen:
                seen.add(key)
                yield launch


def _once(kernel: Kernel, case: Any, dtype: torch.dtype) -> None:
    inputs = kernel.inputs(case, Random(0, dtype, torch.device("cpu"), shapes_only=True))
    leaves = [inputs[name].requires_grad_() for name in kernel.differentiable if isinstance(inputs.get(name), Tensor)]
    out = kernel.run(**inputs)
    if leaves:
        moving = [o for o in (out if isinstance(out, tuple) else (out,)) if o.requires_grad]
        torch.autograd.grad(moving, leaves, [torch.empty_like(o) for o in moving])


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
    """Types, constants and divisibilities, as a launch on a GPU would specialise them: 1 and None are constants,
    addresses and integers divisible by 16 are known to be."""
    types: dict[str, str] = {}
    constants: dict[tuple[int, ...], Any] = {}
    attributes: dict[tuple[int, ...], Any] = {}
    for place, parameter in enumerate(launch.kernel.params):
        value = launch.arguments[parameter.name]
        if parameter.is_constexpr or value is None or (type(value) is int and value == 1):
            types[parameter.name] = "constexpr"
            constants[(place,)] = value
            continue
        if isinstance(value, Tensor):
            types[parameter.name] = "*" + _TYPES[value.dtype]
            divisible = value.storage_offset() * value.element_size() % 16 == 0
        elif isinstance(value, bool):
            types[parameter.name], divisible = "i1", False
        elif isinstance(value, int):
            types[parameter.name] = "i32" if -(2**31) <= value < 2**31 else "i64"
            divisible = value % 16 == 0
        else:
            types[parameter.name], divisible = "fp32", False
        if divisible:
            attributes[(place,)] = [["tt.divisibility", 16]]
    return types, constants, attributes


def compiled(launch: Launch, arch: int) -> Compiled:
    """Compile one launch. Raises CannotRunError in the interpreter, where there is nothing to compile."""
    if interpreted():
        raise CannotRunError("TRITON_INTERPRET=1 is set: interpreted kernels are not compiled", hint="unset it")
    types, constants, attributes = _signature(launch)
    source = ASTSource(launch.kernel, signature=types, constexprs=constants, attrs=attributes)
    options = {"num_warps": launch.config.num_warps, "num_stages": launch.config.num_stages, "enable_fp_fusion": True}
    result = triton.compile(source, target=GPUTarget("cuda", arch, 32), options=options)
    registers, spilled = _resources(result.asm["cubin"])
    ptx = str(result.asm["ptx"])
    found = next((name for name in INSTRUCTIONS if name in ptx), None)
    shared = int(result.metadata.shared)
    return Compiled(
        launch=launch,
        arch=arch,
        registers=registers,
        spilled=spilled,
        shared_bytes=shared,
        instruction=found,
        matrix="tt.dot" in str(result.asm["ttir"]),
        blocks=_blocks(ARCHITECTURES[arch], registers, shared, int(result.metadata.num_warps)),
    )


def _resources(cubin: bytes) -> tuple[int, int]:
    """Registers a thread, and bytes of local memory a thread, which in a Triton kernel are spilled registers."""
    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        said = subprocess.run([tool, "-res-usage", file.name], capture_output=True, text=True, check=True).stdout
    usage = {name: int(value) for name, value in re.findall(r"\b(REG|STACK|LOCAL):(\d+)", said)}
    return usage["REG"], usage["STACK"] + usage["LOCAL"]


def _blocks(limits: Limits, registers: int, shared_bytes: int, num_warps: int) -> int:
    """Blocks that fit on one multiprocessor at a time."""
    a_warp = -(-registers * 32 // 256) * 256
    by_registers = REGISTERS // a_warp // num_warps
    by_shared = limits.shared_bytes // (shared_bytes + 1024)  # the system takes 1 KiB a block
    return max(0, min(by_registers, by_shared, limits.warps // num_warps, limits.blocks))


def faults(result: Compiled, kernel: Kernel) -> list[str]:
    """What must not ship, or is allowed with a reason in `kernel.allowances`; empty when all is well."""
    limits = ARCHITECTURES[result.arch]
    name = result.launch.name
    found = []
    if result.shared_bytes > limits.shared_bytes_a_block:
        found.append(f"shared memory {result.shared_bytes:,} B is over {limits.shared_bytes_a_block:,} B")
    if result.arch != 90:  # what is tuned for Hopper must compile elsewhere, no more
        return found
    if result.spilled and f"{name}: spills" not in kernel.allowances:
        found.append(f"spills {result.spilled} B a thread")
    expected = limits.instruction if result.matrix else None
    if result.instruction != expected and f"{name}: {result.instruction}" not in kernel.allowances:
        found.append(f"uses {result.instruction} where {expected} is expected")
    return found


def compiled_all(kernel: Kernel, arch: int, dtypes: Iterable[torch.dtype]) -> Iterator[Compiled]:
    """Every configuration of every shape of one kernel."""
    for case in kernel.shapes:
        for dtype in dtypes:
            for launch in launches(kernel, case, dtype, arch):
                yield compiled(launch, arch)
