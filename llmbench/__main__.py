"""Entry point of `python -m llmbench`."""

from llmbench.cli import main

main()
