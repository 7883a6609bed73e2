"""The command `python -m benchmarks.gpu`. `benchmarks/gpu_check.sh` starts it.

Exit code 0: the run ended, even if it missed goals. 1: a row is INCORRECT or FAILED. 2: wrong usage. 3: no GPU.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path


def parser() -> argparse.ArgumentParser:
    """Return the parser of the command-line options."""
    options = argparse.ArgumentParser(
        prog="benchmarks/gpu_check.sh", description="Check and time the kernels of llmbench on this GPU."
    )
    add = options.add_argument
    add(
        "--only",
        nargs="+",
        default=[],
        metavar="NAME",
        help="run only experiments whose names contain NAME; run no tests",
    )
    add(
        "--tune",
        nargs="*",
        default=None,
        metavar="KERNEL",
        help="rank the configurations of these kernels (default: all)",
    )
    add("--quick", action="store_true", help="rehearse on a CPU: tiny shapes in Triton's interpreter")
    add("--no-tests", action="store_true", help="run no tests")
    add("--results", type=Path, metavar="FOLDER", help="folder of the result file (default: benchmarks/results/GPU)")
    add("--seconds", type=float, default=520.0, metavar="N", help="time limit of the whole run (default: 520)")
    add("--table", type=Path, metavar="FILE", help="only print the table of goals of a result file")
    # a run that lost the GPU context continues its result file
    add("--resume", type=Path, metavar="FILE", help=argparse.SUPPRESS)
    add("--warm", metavar="K/N", help=argparse.SUPPRESS)  # a compiler process compiles its share of the code
    return options


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return the exit code."""
    given = parser().parse_args(arguments)
    if given.quick:
        os.environ["TRITON_INTERPRET"] = "1"  # Triton reads this variable when the import below loads the first kernel
    from benchmarks.gpu import run
    from llmbench.errors import LLMBenchError

    try:
        return run.run(given)
    except LLMBenchError as problem:
        print(f"error: {problem}" + (f"\n\nhint: {problem.hint}" if problem.hint else ""), file=sys.stderr)
        return problem.exit_code


if __name__ == "__main__":
    sys.exit(main())
