#!/usr/bin/env bash
# The experiments of `llmbench bench` on this GPU in their full preset, with tables and plots, in runs of less than nine
# minutes: the next run goes on where one was out of time.
#
#   benchmarks/gpu_bench.sh                       # all that is not done yet
#   benchmarks/gpu_bench.sh --only attention moe  # these: what is missing of them, and their tables anew
#   benchmarks/gpu_bench.sh --quick               # rehearse it: the quick preset, on a CPU too
#   benchmarks/gpu_bench.sh --help
#
# Needs what gpu_check.sh needs, and matplotlib for the plots. PYTHON and LLMBENCH_COMMIT as there. Exit code 0: nothing
# went wrong, be it done or out of time; 1: something is INCORRECT or crashed; 3: no GPU.
set -euo pipefail
root=$(cd "$(dirname "$0")/.." && pwd)
export PYTHONPATH="$root${PYTHONPATH:+:$PYTHONPATH}" PYTHONUNBUFFERED=1
exec "${PYTHON:-python3}" -m benchmarks.gpu.sweeps "$@"
