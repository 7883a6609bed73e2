"""Measure pieces of models, kernels and whole models, and compare the results with the predictions of the op table.

`pieces` defines the parts of a model that can be timed by themselves. `candidates` turns an implementation of a piece
into a candidate, which `measure.check_and_time` checks and times. `extra_candidates` defines the candidates that are
not implementations of a model. `correctness` compares a candidate with plain torch in fp64. `experiments` contains the
experiments of `llmbench bench` and the code that runs them. `profile` times one piece in detail, `kernels` times single
Triton kernels, and `results` turns rows into tables, plots and JSON.
"""
