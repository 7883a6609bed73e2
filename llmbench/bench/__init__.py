"""Experiments: each sets measurements beside what the sizing table predicts of them.

`pieces` has the parts of a model that can be timed by themselves, `rivals` makes one way to compute a piece into what
`measure.check_and_time` checks and times, `experiment` runs groups of rivals and keeps their rows, `profile` looks at
one piece closely; the other files are the experiments of `llmbench bench`, by their names in `registry`.
"""
