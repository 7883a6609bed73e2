"""Measure pieces of models, kernels and whole models, and compare the results with the predictions of the op table.

`pieces` defines the parts of a model that can be timed by themselves. `candidates` builds a candidate from a piece and
an implementation; `measure.check_and_time` checks and times the candidates. `extra_candidates` defines candidates that
are not implementations of a whole model. `correctness` compares a candidate with plain torch in fp64. `experiments`
contains the experiments of `llmbench bench` and the code that runs them. `profile` times one piece in detail. `kernels`
times single Triton kernels. `results` turns rows into tables, plots and JSON.
"""
