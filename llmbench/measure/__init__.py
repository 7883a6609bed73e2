"""Measure the time, memory and energy of calls, check their results, and write and compare result files.

`check_and_time` checks candidates, times them with `clock.compare`, and yields rows. `results.Store` writes the rows to
a result file. `regressions.diff` compares two result files. `docs/concepts/measuring.md` explains the methods.
"""
