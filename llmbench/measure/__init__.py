"""Measuring: clocks, memory, energy, reference measurements, the check of results, and result files.

`clock.compare` times candidates side by side, `check_and_time` checks them first and yields rows, `results.Store`
writes the rows, and `regressions.diff` compares two files. `docs/concepts/measuring.md` explains the methods.
"""
