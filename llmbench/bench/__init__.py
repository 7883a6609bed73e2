"""Experiments: measured times and memory beside the predictions of the op table.

`pieces` has the parts of a model that can be timed by themselves. `candidates` turns an implementation of a piece into
a candidate that `measure.check_and_time` checks and times; `baselines` has the candidates that are no implementations
of a model, and `correctness` checks them. `experiments` has the experiments of `llmbench bench` and their frame,
`profile` the close look at one piece, `kernels` the timing of single Triton kernels, `results` the rows as tables and
JSON.
"""
