"""Write docs/kernel-configurations.md: the shapes and configurations of each kernel, with the reasons.

python tools/kernel_reference.py            # write the page
python tools/kernel_reference.py --check    # compare; exit 1 if the page is out of date
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import torch
from compiled_kernels import comparison

from llmbench.kernels.formats import short
from llmbench.kernels.kernel import Kernel, describe
from llmbench.kernels.proof.inspect import launches
from llmbench.kernels.registry import KERNELS, load_kernel

TARGET = Path(__file__).parent.parent / "docs" / "kernel-configurations.md"
ARCH = 90

HEAD = """\
# Configurations of the kernels

<!-- Written by tools/kernel_reference.py from kernels/. Do not edit; run it again. -->

This page lists the configurations of each [kernel](concepts/kernels.md) at the shapes of real models, on Hopper (sm_90)
in bf16, or in fp32 for a kernel without bf16. The reasons come from calculations of registers, shared memory and
occupancy. No configuration has been timed yet. The column `shapes` lists the numbers of the shapes that run with a
configuration. A number in brackets is a shape for which the configuration is another candidate. Only a measurement on a
GPU can show which candidate is the fastest. `llmbench kernels inspect` shows the compiled result of each configuration.
`--format json` shows the reasons for other formats and architectures.

The names in a configuration are constants of the function. BLOCK_M, BLOCK_N and the like are the sides of a tile, in
elements. `warps` is the number of warps of a block, and `stages` the number of tiles that are in flight. The docstring
of the function in `kernels/` explains the other names, such as PARTS and DIVIDE of `mla_split`.
"""


def section(kernel: Kernel) -> Iterator[str]:
    """Return the lines about one kernel: its shapes, and a table row for each configuration of each function."""
    passes = "forward and backward" if kernel.differentiable else "forward"
    yield f"\n## {kernel.name}\n\n{kernel.summary[:1].upper()}{kernel.summary[1:]}.\n"
    yield f"Formats: {', '.join(short(dtype) for dtype in kernel.dtypes)}; {passes}.\n\n"
    rows: dict[tuple[str, str, str], list[str]] = {}
    dtype = kernel.formats([torch.bfloat16])[0]
    for number, case in enumerate(kernel.shapes, 1):
        yield f"{number}. {describe(case)}\n"
        for launch in launches(kernel, case, dtype, ARCH):
            places = rows.setdefault((launch.name, str(launch.config), launch.config.note), [])
            text = f"{number}" if launch.shipped else f"({number})"
            if text not in places and str(number) not in places:
                places.append(text)
    yield "\n| function | configuration | shapes | reason |\n|---|---|---|---|\n"
    for (function, config, note), numbers in sorted(rows.items(), key=lambda row: row[0][0]):
        yield f"| `{function}` | {config} | {', '.join(numbers)} | {note} |\n"
    for key, reason in kernel.allowances.items():
        yield f"\nAccepted, `{key}`: {reason}.\n"


def reference() -> str:
    """Return the text of the whole page."""
    return HEAD + "".join(line for name in KERNELS for line in section(load_kernel(name))) + comparison()


def main() -> int:
    """Write the page. With `--check`, only compare it, and return 1 if it is out of date."""
    text = reference()
    if "--check" in sys.argv[1:]:
        current = TARGET.read_text(encoding="utf-8") if TARGET.exists() else ""
        if current != text:
            print(f"{TARGET} is out of date: run python tools/kernel_reference.py", file=sys.stderr)
            return 1
        return 0
    TARGET.write_text(text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
