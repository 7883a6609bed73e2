"""Check and time the kernels of llmbench and other implementations on a GPU, within a time limit.

`goals` defines the goals, `experiments` the cases, and `candidates` the implementations. `jobs` orders the cases. A run
(`run`) compiles in parallel (`compiling`, `workers`), and then measures each job in a child process (`session`,
`children`, `measuring`). It writes one row per candidate, the table of goals (`summary`) and one archive (`archive`).
`tuning` ranks the configurations of a kernel. `benchmarks/gpu_check.sh` starts a run, and `benchmarks/README.md`
explains the rows.
"""
