"""Accounting questions. The sizing code gives the right answers."""
