#!/usr/bin/env bash
# Checks and times the kernels of llmbench and other implementations on this GPU, and measures the limits of the GPU. A
# run takes less than nine minutes.
#
#   benchmarks/gpu_check.sh                       # everything; the table of goals comes last
#   benchmarks/gpu_check.sh --only D128 MoE       # experiments whose names contain one of these
#   benchmarks/gpu_check.sh --tune attention moe  # rank the configurations of kernels (default: all)
#   benchmarks/gpu_check.sh --quick               # rehearse on a CPU with tiny shapes, without times
#   benchmarks/gpu_check.sh --help
#
# This script needs torch, triton, msgspec, rich and typer. The tests also need pytest, and the rows of Liger also need
# liger-kernel. PYTHON=… selects another interpreter. LLMBENCH_COMMIT=… names the commit if the code has no git history.
# Exit code 0: the run ended, even if it missed goals. 1: a row is INCORRECT or FAILED. 2: wrong usage. 3: no GPU.
set -euo pipefail
root=$(cd "$(dirname "$0")/.." && pwd)
export PYTHONPATH="$root${PYTHONPATH:+:$PYTHONPATH}" PYTHONUNBUFFERED=1
# The processes share the cores, so each process compiles on one core.
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}" TORCHINDUCTOR_COMPILE_THREADS=1
exec "${PYTHON:-python3}" -m benchmarks.gpu "$@"
