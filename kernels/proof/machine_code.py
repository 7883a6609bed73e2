"""Read the machine code (SASS) of a compiled kernel: its hot loops, their instructions, and the unit that limits them.

A hot loop is an innermost loop with tensor-core instructions, or, in a kernel without any, an innermost loop that
reads or writes global memory. A turn is one iteration of the loop, and its instructions are counted per warp. A model
of the multiprocessor then gives the cycles that each unit needs for one turn of one block. The unit with the most
cycles limits the loop. Even if all units work at the same time, a turn takes at least these cycles. So the figure is a
lower bound and not a predicted time.
"""

from __future__ import annotations

import re
import subprocess
import tempfile
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import triton

__all__ = ["CLASSES", "Instruction", "Loop", "disassemble", "hot_loops", "resources"]

CLASSES = ("tensor", "mufu", "fp32", "memory", "barrier", "other")
"""Classes of instructions. `mufu`: exponentials, reciprocals and other functions of the special function unit."""

SERIALISED_SHARE = 0.8
"""A loop is serialised if it has at least this many waits per asynchronous matrix product."""


class Instruction(NamedTuple):
    """One instruction. `predicated`: whether it runs only if a predicate is true."""

    address: int
    predicated: bool
    opcode: str
    operands: str

    @property
    def name(self) -> str:
        """The opcode without its modifiers."""
        return self.opcode.split(".")[0]


# == Classes of instructions ==

_CLASS_OF = {
    **dict.fromkeys(("HGMMA", "QGMMA", "IGMMA", "HMMA", "IMMA", "QMMA", "OMMA", "UTCHMMA", "UTCQMMA"), "tensor"),
    "MUFU": "mufu",
    **dict.fromkeys(("FADD", "FMUL", "FFMA", "FMNMX", "FSEL", "FSET", "FSETP", "FCHK", "FSWZADD"), "fp32"),
    **dict.fromkeys(("LDG", "STG", "LDS", "STS", "LDSM", "STSM", "LDGSTS", "LDL", "STL", "LD", "ST"), "memory"),
    **dict.fromkeys(("ATOM", "ATOMG", "ATOMS", "RED", "REDG", "UTMALDG", "UTMASTG", "UTMAREDG"), "memory"),
    **dict.fromkeys(("BAR", "SYNCS", "WARPGROUP", "DEPBAR", "LDGDEPBAR", "LDGMBAR", "MEMBAR", "FENCE"), "barrier"),
    **dict.fromkeys(("ARRIVES", "WARPSYNC", "UTMACMDFLUSH", "ERRBAR", "NANOSLEEP"), "barrier"),
}
_ASYNCHRONOUS = ("HGMMA", "QGMMA", "IGMMA")
_GLOBAL = ("LDG", "STG", "LDGSTS", "LD", "ST", "ATOMG", "RED", "REDG", "UTMALDG", "UTMASTG", "UTMAREDG")


# == The model of a multiprocessor ==

# Per cycle, an H100 multiprocessor issues 4 instructions (one per scheduler), computes 16 special functions and 4,096
# dense FLOPs in bf16 or fp16, and moves 128 bytes from or to shared memory. Source: NVIDIA H100 whitepaper and the CUDA
# programming guide, table of arithmetic throughput.
_ISSUES, _SPECIAL, _SHARED_BYTES = 4, 16, 128
_FLOPS = {"BF16": 4096, "F16": 4096, "TF32": 2048, "E4M3": 8192, "E5M2": 8192, "S8": 8192, "U8": 8192}
_WARP, _WARPGROUP = 32, 4


@dataclass(frozen=True, kw_only=True)
class Loop:
    """One turn of a hot loop. `counts`: instructions per warp in each class of `CLASSES`. `cycles`: the cycles that one
    block needs per unit: issue, special functions, tensor cores, shared memory. `products`: asynchronous matrix
    instructions. `waits`: instructions that wait for them."""

    counts: dict[str, int]
    cycles: dict[str, float]
    products: int
    waits: int

    @property
    def instructions(self) -> int:
        """Instructions per warp and turn."""
        return sum(self.counts.values())

    @property
    def limit(self) -> str:
        """The unit that needs the most cycles."""
        return max(self.cycles, key=lambda unit: self.cycles[unit])

    @property
    def serialised(self) -> bool:
        """Whether nearly every asynchronous product is followed by a wait, so that products do not overlap.

        ptxas inserts these waits, with warning C7515, if it cannot prove that a product's registers stay untouched."""
        return self.products > 1 and self.waits >= SERIALISED_SHARE * self.products


def hot_loops(code: Sequence[Instruction], num_warps: int) -> list[Loop]:
    """Return the hot loops of a kernel with `num_warps` warps per block, in the order of their addresses."""
    matrix = any(_CLASS_OF.get(i.name) == "tensor" for i in code)

    def hot(body: Sequence[Instruction]) -> bool:
        return any(_CLASS_OF.get(i.name) == "tensor" if matrix else i.name in _GLOBAL for i in body)

    blocks = _blocks(code)
    loops = [loop for loop in _natural_loops(blocks) if hot(_body(blocks, loop))]
    innermost = [loop for loop in loops if not any(other.blocks < loop.blocks for other in loops)]
    return [_loop(_body(blocks, loop), num_warps) for loop in sorted(innermost)]


def disassemble(cubin: bytes) -> list[Instruction]:
    """Return the instructions of the only kernel in `cubin`."""
    lines = re.findall(r"^\s+/\*([0-9a-f]+)\*/\s+(@!?U?P\w+ )?\s*([\w.]+) ?(.*?);", _cuobjdump("-sass", cubin), re.M)
    return [Instruction(int(address, 16), bool(guard), opcode, rest) for address, guard, opcode, rest in lines]


def resources(cubin: bytes) -> tuple[int, int]:
    """Return the registers per thread, and the bytes of local memory per thread. In a Triton kernel, local memory
    contains spilled registers."""
    output = _cuobjdump("-res-usage", cubin)
    usage = {name: int(value) for name, value in re.findall(r"\b(REG|STACK|LOCAL):(\d+)", output)}
    return usage["REG"], usage["STACK"] + usage["LOCAL"]


def _cuobjdump(option: str, cubin: bytes) -> str:
    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        return subprocess.run([tool, option, file.name], capture_output=True, text=True, check=True).stdout


def _loop(body: Sequence[Instruction], num_warps: int) -> Loop:
    counts = Counter(_CLASS_OF.get(i.name, "other") for i in body)
    products = sum(i.name in _ASYNCHRONOUS for i in body)
    waits = sum(i.opcode.startswith("WARPGROUP.DEPBAR") for i in body)
    flops_cycles = shared = 0.0
    for instruction in body:
        cycles, read = _matrix_work(instruction, num_warps)
        flops_cycles += cycles
        shared += read + _shared_access(instruction) * num_warps
    return Loop(
        counts={name: counts[name] for name in CLASSES},
        cycles={
            "issue": len(body) * num_warps / _ISSUES,
            "special functions": counts["mufu"] * num_warps * _WARP / _SPECIAL,
            "tensor cores": flops_cycles,
            "shared memory": shared / _SHARED_BYTES,
        },
        products=products,
        waits=waits,
    )


def _matrix_work(instruction: Instruction, num_warps: int) -> tuple[float, float]:
    """Return the tensor-core cycles of an instruction in all warps, and the bytes of its operands in shared memory."""
    parts = instruction.opcode.split(".")
    bits = next((part for part in reversed(parts) if part in _FLOPS), "BF16")
    if instruction.name in _ASYNCHRONOUS and (shape := re.fullmatch(r"(\d+)x(\d+)x(\d+)", parts[1])):
        m, n, k = map(int, shape.groups())
        groups = num_warps // _WARPGROUP
        element = 4096 * 2 / _FLOPS[bits]
        # Operand A is in registers if a second register precedes the descriptor: "R24, R188, gdesc[UR20], R24".
        registers = re.match(r"R\d+(\.\w+)*, R\d+", instruction.operands)
        elements = n * k if registers else (m + n) * k
        return 2 * m * n * k * groups / _FLOPS[bits], elements * element * groups
    if instruction.name in ("HMMA", "IMMA", "QMMA") and (shape := re.fullmatch(r"(\d{1,2})(8)(\d+)", parts[1])):
        m, n, k = map(int, shape.groups())
        return 2 * m * n * k * num_warps / _FLOPS[bits], 0.0
    return 0.0, 0.0


def _shared_access(instruction: Instruction) -> int:
    """Return the bytes of shared memory that a load or store moves in one warp."""
    parts = instruction.opcode.split(".")
    if instruction.name in ("LDSM", "STSM"):
        # These instructions move 1, 2 or 4 matrices of 128 B.
        return 128 * next((int(part) for part in reversed(parts) if part in ("1", "2", "4")), 1)
    if instruction.name not in ("LDS", "STS", "LDGSTS") or instruction.operands.startswith("RZ, [RZ]"):
        return 0  # a load into RZ moves no data, it only orders memory accesses
    bits = next((int(part) for part in parts if part in ("64", "128")), 32)
    return bits // 8 * _WARP


# == Loops ==


class _Block(NamedTuple):
    """A basic block: its instructions, and the addresses of the blocks that may follow it."""

    code: Sequence[Instruction]
    following: tuple[int, ...]


class _NaturalLoop(NamedTuple):
    """A loop: its first address, its last address, and the addresses of its blocks."""

    first: int
    last: int
    blocks: frozenset[int]


def _body(blocks: dict[int, _Block], loop: _NaturalLoop) -> list[Instruction]:
    """Return the instructions between the first and the last address of a loop. Code that waits for a barrier is left
    out, because the compiler puts it at the end of the kernel."""
    inside = sorted(address for address in loop.blocks if loop.first <= address <= loop.last)
    return [instruction for address in inside for instruction in blocks[address].code]


def _blocks(code: Sequence[Instruction]) -> dict[int, _Block]:
    """Split the code into basic blocks. The keys are the addresses of their first instructions."""
    addresses = {i.address for i in code}
    targets = {target for i in code if (target := _target(i)) is not None} & addresses
    blocks: dict[int, _Block] = {}
    start = 0
    for index, instruction in enumerate(code):
        after = code[index + 1].address if index + 1 < len(code) else None
        target = _target(instruction)
        jumps = target is not None or instruction.name in ("EXIT", "RET")
        if not jumps and after is not None and after not in targets:
            continue
        following = [after] if after is not None and (instruction.predicated or not jumps) else []
        following += [target] if target in targets else []
        blocks[code[start].address] = _Block(code[start : index + 1], tuple(x for x in following if x is not None))
        start = index + 1
    return blocks


def _target(instruction: Instruction) -> int | None:
    """Return the address that a branch jumps to."""
    if instruction.name not in ("BRA", "JMP"):
        return None
    addresses = re.findall(r"0x[0-9a-f]+", instruction.operands)
    return int(addresses[-1], 16) if addresses else None


def _natural_loops(blocks: dict[int, _Block]) -> list[_NaturalLoop]:
    """Return the natural loops. A jump closes a loop if its target dominates the jump.

    Code that waits for a barrier stands at the end of the kernel and jumps back. This jump closes no loop, because its
    target does not dominate the jump.
    """
    dominators = _dominators(blocks)
    before: dict[int, list[int]] = {address: [] for address in blocks}
    for address in dominators:
        for successor in blocks[address].following:
            before[successor].append(address)
    loops: dict[int, _NaturalLoop] = {}
    for address, through in dominators.items():
        for header in set(blocks[address].following) & through:
            body, open_blocks = {header}, [address]
            while open_blocks:
                inner = open_blocks.pop()
                if inner not in body:
                    body.add(inner)
                    open_blocks += before[inner]
            earlier = loops.get(header, _NaturalLoop(header, header, frozenset()))
            last = max(earlier.last, blocks[address].code[-1].address)
            loops[header] = _NaturalLoop(header, last, earlier.blocks | body)
    return list(loops.values())


def _dominators(blocks: dict[int, _Block]) -> dict[int, set[int]]:
    """Return the blocks that every path from the entry to a block passes, for each block that can be reached."""
    entry = next(iter(blocks))
    order: list[int] = []
    seen, open_blocks = {entry}, [entry]
    while open_blocks:
        name = open_blocks.pop()
        order.append(name)
        for successor in blocks[name].following:
            if successor not in seen:
                seen.add(successor)
                open_blocks.append(successor)
    before: dict[int, list[int]] = {name: [] for name in order}
    for name in order:
        for successor in blocks[name].following:
            before[successor].append(name)
    dominators = {name: set(order) for name in order}
    dominators[entry] = {entry}
    changed = True
    while changed:
        changed = False
        for name in order[1:]:
            new = set.intersection(*(dominators[other] for other in before[name])) | {name}
            if new != dominators[name]:
                dominators[name], changed = new, True
    return dominators
