"""Published measurements and what llmbench computes for them: one reader per kind of file.

`rows.py` reads a CSV file. `kinds.py` lists the kinds of files and their columns. Each kind has a reader, which turns a
row into a `Comparison`, and refuses a row in words. `metrics.py` summarises the errors of the rows.
"""
