"""`python -m benchmarks.gpu`, which `benchmarks/gpu_check.sh` runs.

Exit codes: 0 it ran, whatever was missed; 1 something is INCORRECT or crashed; 2 usage; 3 no GPU here.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path


def parser() -> argparse.ArgumentParser:
    """The options."""
    found = argparse.ArgumentParser(
        prog="benchmarks/gpu_check.sh", description="Our kernels on this GPU: right, and how fast."
    )
    add = found.add_argument
    add("--only", nargs="+", default=[], metavar="NAME", help="only experiments with NAME in theirs, and no tests")
    add("--tune", nargs="*", default=None, metavar="KERNEL", help="rank the configurations of these kernels, or of all")
    add("--quick", action="store_true", help="rehearse on a CPU, in Triton's interpreter, at tiny shapes")
    add("--no-tests", action="store_true", help="measure only")
    add("--results", type=Path, metavar="FOLDER", help="where the file goes; benchmarks/results/GPU if not given")
    add("--seconds", type=float, default=520.0, metavar="N", help="what all of it may take (default 520)")
    add("--table", type=Path, metavar="FILE", help="print the table of goals of a file of results, and do nothing else")
    add("--resume", type=Path, metavar="FILE", help=argparse.SUPPRESS)  # what a lost GPU context left to do
    add("--warm", metavar="K/N", help=argparse.SUPPRESS)  # compile a share of what will be timed
    return found


def main(arguments: Sequence[str] | None = None) -> int:
    """Run, and return the exit code."""
    given = parser().parse_args(arguments)
    if given.quick:
        os.environ["TRITON_INTERPRET"] = "1"  # before the first kernel is loaded, which is below
    from benchmarks.gpu import run
    from llmbench.errors import LLMBenchError

    try:
        return run.run(given)
    except LLMBenchError as problem:
        print(f"error: {problem}" + (f"\n\nhint: {problem.hint}" if problem.hint else ""), file=sys.stderr)
        return problem.exit_code


if __name__ == "__main__":
    sys.exit(main())
