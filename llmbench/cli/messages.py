"""Messages to the user on stderr. The answer of a command goes to stdout."""

from __future__ import annotations

import sys
from contextlib import suppress

from llmbench.printable import printable

__all__ = ["say"]


def say(text: str) -> None:
    """Write a line to stderr. If stderr cannot be written, the message is lost, and the command goes on."""
    with suppress(OSError, ValueError):  # ValueError: stderr is closed
        sys.stderr.write(printable(text, lines=True) + "\n")
