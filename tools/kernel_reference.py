"""Write docs/kernel-configurations.md from the kernels: what each is for, its shapes, its configurations and why.

python tools/kernel_reference.py            # write it
python tools/kernel_reference.py --check    # compare; exit 1 where it is out of date
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import torch

from llmbench.kernels.formats import short
from llmbench.kernels.kernel import Kernel, describe
from llmbench.kernels.proof.inspect import launches
from llmbench.kernels.registry import KERNELS, load_kernel

TARGET = Path(__file__).parent.parent / "docs" / "kernel-configurations.md"
ARCH = 90

HEAD = """\
# Configurations of the kernels

<!-- Written by tools/kernel_reference.py from kernels/. Do not edit; run it again. -->

How each [kernel](concepts/kernels.md) is launched at the shapes of real models: on Hopper (sm_90), in bf16, or in its
own format where it has no bf16. Reasons are arithmetic on registers, shared memory and occupancy; none has been timed.
The numbers are those of the shapes that a configuration is launched for; in brackets, of those for which it is there to
be chosen where a GPU can tell. `llmbench kernels inspect` shows what the compiler made of each, and `--format json` the
reasons for other formats and architectures.
"""


def section(of: Kernel) -> Iterator[str]:
    """A kernel's shapes, and a row for each configuration of each of its functions."""
    passes = "forward and backward" if of.differentiable else "forward"
    yield f"\n## {of.name}\n\n{of.summary[:1].upper()}{of.summary[1:]}.\n"
    yield f"Formats: {', '.join(short(dtype) for dtype in of.dtypes)}; {passes}.\n\n"
    rows: dict[tuple[str, str, str], list[str]] = {}
    dtype = of.formats([torch.bfloat16])[0]
    for number, case in enumerate(of.shapes, 1):
        yield f"{number}. {describe(case)}\n"
        for launch in launches(of, case, dtype, ARCH):
            found = rows.setdefault((launch.name, str(launch.config), launch.config.note), [])
            text = f"{number}" if launch.shipped else f"({number})"
            if text not in found and str(number) not in found:
                found.append(text)
    yield "\n| function | configuration | shapes | why |\n|---|---|---|---|\n"
    for (function, config, note), numbers in sorted(rows.items(), key=lambda row: row[0][0]):
        yield f"| `{function}` | {config} | {', '.join(numbers)} | {note} |\n"
    for key, reason in of.allowances.items():
        yield f"\nAllowed, `{key}`: {reason}.\n"


def reference() -> str:
    """The page."""
    return HEAD + "".join(line for name in KERNELS for line in section(load_kernel(name)))


def main() -> int:
    """Write or compare the page."""
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
