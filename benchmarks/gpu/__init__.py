"""The kernels on a GPU, in one run of less than nine minutes: right, and how fast beside their rivals.

`goals` has the table of goals, `experiments` what is timed, `contenders` against what; `measuring` makes rows of them,
`workers` checks and compiles beside each other before, `tuning` ranks configurations, `summary` prints the table.
`benchmarks/gpu_check.sh` runs it; `benchmarks/README.md` says what a row means.
"""
