#!/usr/bin/env bash
# Our kernels on this GPU, in less than nine minutes: right, and how fast beside their rivals and the machine's own limits.
#
#   benchmarks/gpu_check.sh                       # everything; the table of goals comes last
#   benchmarks/gpu_check.sh --only D128 MoE       # experiments with one of these in their names
#   benchmarks/gpu_check.sh --tune attention moe  # rank the configurations of kernels (all where none is named)
#   benchmarks/gpu_check.sh --quick               # rehearse it on a CPU: same code, tiny shapes, no times
#   benchmarks/gpu_check.sh --help
#
# Needs torch, triton, msgspec, rich and typer; pytest for the tests, liger-kernel for its rows. PYTHON=… names another
# interpreter, LLMBENCH_COMMIT=… the commit of a tree without its history. Exit code 0: it ran, and misses are printed as
# misses; 1: something is INCORRECT or crashed; 3: no GPU.
set -euo pipefail
root=$(cd "$(dirname "$0")/.." && pwd)
export PYTHONPATH="$root${PYTHONPATH:+:$PYTHONPATH}" PYTHONUNBUFFERED=1
# Processes share the cores: each compiles on one.
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}" TORCHINDUCTOR_COMPILE_THREADS=1
exec "${PYTHON:-python3}" -m benchmarks.gpu "$@"
