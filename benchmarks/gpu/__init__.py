"""Check and time the kernels of llmbench and other implementations on a GPU, in one run of less than nine minutes.

`goals` defines the goals, `experiments` defines the cases, and `candidates` defines the implementations. A run has
three steps. First, `workers` runs the tests and the compilers in parallel. Then `measuring` checks and times the
candidates and writes one row for each. At the end, `summary` prints the table of goals. `tuning` ranks the
configurations of a kernel. `benchmarks/gpu_check.sh` starts a run, and `benchmarks/README.md` explains the rows.
"""
