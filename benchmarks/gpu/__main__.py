"""The command `python -m benchmarks.gpu`, which `benchmarks/gpu_check.sh` starts. If the first argument is `bench`, it
is the command of `benchmarks/gpu_bench.sh`.

Exit code 0: the run ended, even if it missed goals. 1: a row is INCORRECT or FAILED. 2: wrong usage. 3: no GPU, or a
missing package.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from benchmarks.gpu.packages import missing


def parser() -> argparse.ArgumentParser:
    """Return the parser of the command-line options."""
    options = argparse.ArgumentParser(
        prog="benchmarks/gpu_check.sh", description="Check and time the kernels of llmbench on this GPU."
    )
    what = options.add_argument_group("what to run")
    what.add_argument(
        "--first",
        action="store_true",
        help="the first run on a new machine: the most valuable results first, in at most 270 s, without tests",
    )
    what.add_argument(
        "--only",
        nargs="+",
        default=[],
        metavar="FAMILY",
        help="run only these families, or experiments whose names contain FAMILY; run no tests",
    )
    what.add_argument(
        "--since",
        type=Path,
        metavar="FILE",
        help="run only experiments that missed a goal or failed in this result file or archive; run no tests",
    )
    what.add_argument(
        "--tune",
        nargs="*",
        default=None,
        metavar="FAMILY",
        help="rank the configurations of the kernels of these families, or of these kernels (default: all)",
    )
    what.add_argument(
        "--ptxas",
        nargs="+",
        default=[],
        metavar="PATH",
        help="run our kernels once per assembler; `default` is the one that Triton chooses (default family: attention)",
    )
    what.add_argument("--ours", action="store_true", help="run only our kernels and the reference measurements")
    what.add_argument("--no-compiled", action="store_true", help="leave out torch.compile and FlexAttention")
    what.add_argument("--no-tests", action="store_true", help="run no tests")
    what.add_argument("--quick", action="store_true", help="rehearse on a CPU: tiny shapes in Triton's interpreter")
    run_options = options.add_argument_group("how to run")
    run_options.add_argument(
        "--seeds", type=int, metavar="N", help="random inputs per check (default: 3; with --ptxas: 20)"
    )
    run_options.add_argument(
        "--seconds", type=float, metavar="N", help="time limit of the whole run (default: 520, or 270)"
    )
    run_options.add_argument(
        "--results",
        type=Path,
        metavar="FOLDER",
        help="folder of the results (default: $OUT, or benchmarks/results/GPU)",
    )
    run_options.add_argument(
        "--table", type=Path, metavar="FILE", help="only print the table of a result file or an archive"
    )
    return options


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return the exit code."""
    arguments = sys.argv[1:] if arguments is None else arguments
    bench = list(arguments[:1]) == ["bench"]
    options = None if bench else parser().parse_args(arguments)
    lacking = missing()
    if lacking is not None:
        print(f"error: {lacking}", file=sys.stderr)
        return 3
    if options is None:
        from benchmarks.gpu import sweeps

        return sweeps.main(arguments[1:])
    if options.quick:
        os.environ["TRITON_INTERPRET"] = "1"  # Triton reads this variable when the import below loads the first kernel
    from benchmarks.gpu import run
    from llmbench.errors import LLMBenchError

    try:
        return run.run(options)
    except LLMBenchError as problem:
        print(f"error: {problem}" + (f"\n\nhint: {problem.hint}" if problem.hint else ""), file=sys.stderr)
        return problem.exit_code


if __name__ == "__main__":
    sys.exit(main())
