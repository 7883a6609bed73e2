"""Check and time our kernels and other implementations on a GPU, in one run of less than nine minutes.

`goals` defines the goals, `experiments` the cases, and `candidates` the implementations. First `workers` runs the tests
and the compilers in parallel. Then `measuring` checks and times the candidates and writes a row for each. `summary`
prints the table of goals; `tuning` ranks configurations. `benchmarks/gpu_check.sh` starts a run; `benchmarks/README.md`
explains the rows.
"""
