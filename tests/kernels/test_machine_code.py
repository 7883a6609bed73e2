"""The reader of machine code, on short programs that are written here."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

pytest.importorskip("triton")

from llmbench.kernels.proof.machine_code import Instruction, Loop, hot_loops


def program(text: str) -> list[Instruction]:
    """The instructions of a text with one per line, 16 bytes each. `L1:` names an address, and `L1` refers to it."""
    labels: dict[str, int] = {}
    lines: list[str] = []
    for line in text.strip().splitlines():
        label, colon, rest = line.strip().partition(": ")
        labels |= {label: 16 * len(lines)} if colon else {}
        lines.append(rest if colon else label)
    code = []
    for number, line in enumerate(lines):
        guard, _, rest = line.partition(" ") if line.startswith("@") else ("", "", line)
        opcode, _, operands = rest.partition(" ")
        code.append(Instruction(16 * number, bool(guard), opcode, operands))
    return [i._replace(operands=hex(labels[i.operands])) if i.operands in labels else i for i in code]


def only_loop(text: str, num_warps: int = 8) -> Loop:
    [loop] = hot_loops(program(text), num_warps)
    return loop


PRODUCTS = """
LDC R1
L1: WARPGROUP.ARRIVE
HGMMA.64x128x16.F32.BF16 R24, gdesc[UR20], RZ, !UPT
{wait}
HGMMA.64x128x16.F32.BF16 R24, R88, gdesc[UR20], R24, gsb0
WARPGROUP.DEPBAR.LE gsb0, 0x0
MUFU.EX2 R3, R3
FMUL R3, R3, R3
@P0 BRA L1
EXIT
"""


def test_a_turn_is_counted_by_class() -> None:
    loop = only_loop(PRODUCTS.format(wait="FADD R1, R1, R2"))
    assert loop.counts == {"tensor": 2, "mufu": 1, "fp32": 2, "memory": 0, "barrier": 2, "other": 1}
    assert loop.instructions == 8


def test_a_turn_costs_what_the_units_need() -> None:
    loop = only_loop(PRODUCTS.format(wait="FADD R1, R1, R2"))
    # Two products of 64 x 128 x 16 in each of two warpgroups; B is 128 x 16 values of 2 bytes, A is 64 x 16.
    assert loop.cycles["tensor cores"] == 2 * 2 * (2 * 64 * 128 * 16) / 4096
    assert loop.cycles["shared memory"] == 2 * ((128 + 64) * 16 * 2 + 128 * 16 * 2) / 128
    assert loop.cycles["special functions"] == 8 * 32 / 16
    assert loop.cycles["issue"] == 8 * 8 / 4
    assert loop.limit == "tensor cores"


def test_formats_have_their_own_rates() -> None:
    for name, cycles in (("BF16", 64.0), ("TF32", 128.0), ("E4M3.E4M3", 32.0)):
        text = f"L1: HGMMA.64x128x16.F32.{name} R24, gdesc[UR20], R24\n@P0 BRA L1\nEXIT"
        assert only_loop(text, num_warps=4).cycles["tensor cores"] == cycles


@pytest.mark.parametrize(("wait", "serialised"), [("WARPGROUP.DEPBAR.LE gsb0, 0x0", True), ("NOP ", False)])
def test_a_wait_after_each_product_serialises(wait: str, serialised: bool) -> None:
    assert only_loop(PRODUCTS.format(wait=wait)).serialised is serialised


def test_code_that_waits_elsewhere_closes_no_loop() -> None:
    loop = only_loop("""
        LDC R1
        L1: SYNCS.PHASECHK.TRANS64.TRYWAIT P0, [UR4]
        @!P0 BRA L3
        L2: LDG.E R2, [R4]
        FADD R1, R1, R2
        @P1 BRA L1
        STG.E [R4], R1
        EXIT
        L3: SYNCS.PHASECHK.TRANS64.TRYWAIT P0, [UR4]
        @!P0 BRA L3
        BRA L2
    """)
    assert loop.counts == {"tensor": 0, "mufu": 0, "fp32": 1, "memory": 1, "barrier": 1, "other": 2}


def test_only_the_innermost_loop_is_hot() -> None:
    loops = hot_loops(
        program("""
            L1: LDG.E.64 R2, [R4]
            L2: LDS.128 R4, [R8]
            LDG.E R6, [R4]
            @P0 BRA L2
            @P1 BRA L1
            L4: FADD R1, R1, R2
            @P2 BRA L4
            EXIT
        """),
        4,
    )
    assert [loop.counts["memory"] for loop in loops] == [2]
    assert loops[0].cycles["shared memory"] == 4 * 32 * 16 / 128


def test_a_loop_without_products_is_not_hot_beside_products() -> None:
    text = "L1: LDG.E R2, [R4]\n@P0 BRA L1\n" + PRODUCTS.strip().replace("L1", "L2").format(wait="NOP ")
    assert [loop.products for loop in hot_loops(program(text), 4)] == [2]


def test_code_without_loops() -> None:
    assert hot_loops(program("LDG.E R2, [R4]\nSTG.E [R4], R2\nEXIT"), 4) == []


def test_a_serialised_loop_is_a_fault() -> None:
    from llmbench.kernels.proof.inspect import Compiled, faults_of

    plain = {"kernel": "k", "case": "", "dtype": "bfloat16", "config": "", "note": "", "arch": 90, "shipped": True}
    for wait, faults in (
        ("WARPGROUP.DEPBAR.LE gsb0, 0x0", {"f: serialised": "serialises matrix products: 2 products, 2 waits"}),
        ("NOP ", {}),
    ):
        loops = (only_loop(PRODUCTS.format(wait=wait)),)
        row = Compiled(**plain, function="f", num_warps=8, num_stages=2, instruction="wgmma", loops=loops)
        assert faults_of(row, matrix=True) == faults


COMPILED = """
import torch
from llmbench.kernels.proof import inspect as inspection
for name, function, shape in (("mla_decode", "mla_split", 0), ("moe", "grouped_weight_gradient", 0)):
    kernel = inspection.load_kernel(name)
    case = kernel.shapes[shape]
    for launch in inspection.launches(kernel, case, torch.bfloat16, 90):
        if launch.name == function and launch.shipped:
            [loop] = inspection._compiled(kernel, case, torch.bfloat16, launch, 90).loops
            print(launch.config.get("BLOCK_M"), launch.config.get("BLOCK_N"), loop.cycles["tensor cores"],
                  loop.counts["mufu"], loop.serialised)
"""


def test_hot_loops_do_no_work_twice_and_do_not_divide() -> None:
    """Latent decoding with 128 heads computes each product once. The loop of an expert's weight gradient has no
    special function: an integer division by a value that the compiler does not know would have a reciprocal."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    done = subprocess.run(
        [sys.executable, "-c", COMPILED], capture_output=True, text=True, env=environment, check=False
    )
    assert done.returncode == 0, done.stderr
    (rows, keys, cycles, _, serialised), *gradients = (line.split() for line in done.stdout.splitlines())
    assert float(cycles) == 2 * int(rows) * int(keys) * (512 + 64 + 512) / 4096
    assert [serialised, *(row[4] for row in gradients)] == ["False"] * 3
    assert [row[3] for row in gradients] == ["0", "0"]
