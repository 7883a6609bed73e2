#!/usr/bin/env bash
# Runs the full preset of the experiments of `llmbench bench` on this GPU, with tables and plots, in slices of at most
# 240 s. The next run continues where the last run ended.
#
#   benchmarks/gpu_bench.sh                       # the next experiments that are not done yet
#   benchmarks/gpu_bench.sh --since ARCHIVE       # go on from the archive of the last run, also of another machine
#   benchmarks/gpu_bench.sh --only attention moe  # only these two: missing rows and new tables
#   benchmarks/gpu_bench.sh --quick               # rehearse with the quick preset, also on a CPU
#   benchmarks/gpu_bench.sh --help
#
# This script needs the packages of gpu_check.sh, and matplotlib for the plots. PYTHON and LLMBENCH_COMMIT have the same
# meaning as in gpu_check.sh. Exit code 0: no errors, even if the time ran out. 1: a row is INCORRECT or FAILED. 2:
# wrong usage. 3: no GPU, or a missing package.
set -euo pipefail
export GPU_CHECK_STARTED=${EPOCHREALTIME/,/.}
root=$(cd "$(dirname "$0")/.." && pwd)
export PYTHONPATH="$root${PYTHONPATH:+:$PYTHONPATH}" PYTHONUNBUFFERED=1
exec "${PYTHON:-python3}" -m benchmarks.gpu bench "$@"
