#!/usr/bin/env bash
# Checks and times the kernels of llmbench and other implementations on this GPU, and measures the limits of the GPU.
#
#   benchmarks/gpu_check.sh --first               # on a new machine: the most valuable results first, within 270 s
#   benchmarks/gpu_check.sh                       # everything, with tests, within 520 s; the table of goals comes last
#   benchmarks/gpu_check.sh --since ARCHIVE       # only experiments that missed a goal or failed in an earlier run
#   benchmarks/gpu_check.sh --only moe D128       # only these families, or experiments whose names contain a word
#   benchmarks/gpu_check.sh --tune attention moe  # rank the configurations of kernels (default: all)
#   benchmarks/gpu_check.sh --ptxas default PATH  # our attention under two assemblers, checked with 20 seeds
#   benchmarks/gpu_check.sh --quick               # rehearse on a CPU with tiny shapes, without times
#   benchmarks/gpu_check.sh --help
#
# This script needs torch, triton, numpy, msgspec, rich and typer; nvidia-ml-py reads clocks. The tests also need pytest,
# and the rows of Liger also need liger-kernel. gpu_wheels.sh collects the wheels of all these packages but the first
# three. The results are one archive in --results, in $OUT, or in benchmarks/results/GPU. PYTHON=… selects another
# interpreter. LLMBENCH_COMMIT=… names the commit if the code has no git history. Exit code 0: the run ended, even if it
# missed goals. 1: a row is INCORRECT or FAILED. 2: wrong usage. 3: no GPU, or a missing package.
set -euo pipefail
export GPU_CHECK_STARTED=${EPOCHREALTIME/,/.}
root=$(cd "$(dirname "$0")/.." && pwd)
export PYTHONPATH="$root${PYTHONPATH:+:$PYTHONPATH}" PYTHONUNBUFFERED=1
# The processes share the cores, so each process compiles on one core.
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}" TORCHINDUCTOR_COMPILE_THREADS=1
# torch asks the driver for GPUs without starting CUDA. A process that has started CUDA cannot fork children that use it.
export PYTORCH_NVML_BASED_CUDA_CHECK=1
exec "${PYTHON:-python3}" -m benchmarks.gpu "$@"
