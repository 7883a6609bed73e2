"""Measuring: clocks, memory, energy, reference measurements, the check of results, and result files.

`clock.compare` times candidates side by side, `check_and_time` makes rows of them, `results.Store` writes the rows,
`difference.diff` compares two files. `docs/concepts/measuring.md` explains the methods.
"""
