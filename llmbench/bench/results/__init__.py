"""Measured rows as tables, plots and JSON."""
