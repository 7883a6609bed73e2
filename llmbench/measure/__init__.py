"""Measuring: clocks, memory, energy, reference measurements, a gate for correctness, and a file of results.

`clock.compare` times rivals side by side, `gate.measured` makes result rows of them, `results.Store` keeps rows as they
come, `difference.diff` holds two files against each other. `docs/concepts/measuring.md` says how and why.
"""
