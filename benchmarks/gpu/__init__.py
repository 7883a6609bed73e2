"""Check and time the kernels on a GPU, beside other implementations, in one run of less than nine minutes.

`goals` has the table of goals, `experiments` the cases, `candidates` the implementations; `measuring` makes rows of
them. Before that, `workers` runs the tests and the compilers in parallel. `tuning` ranks configurations, `summary`
prints the table. `benchmarks/gpu_check.sh` starts a run; `benchmarks/README.md` explains the rows.
"""
