"""Serving with a named engine: its memory budget, its cache pools, and what fits into them."""
