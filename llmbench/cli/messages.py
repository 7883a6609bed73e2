"""Messages to the user on stderr. The answer of a command goes to stdout."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import TextIO

from llmbench.printable import printable

__all__ = ["abandon", "say", "saying_after"]


def say(text: str) -> None:
    """Write a line to stderr. If stderr cannot be written, the message is lost, and the command goes on."""
    try:
        sys.stderr.write(printable(text, lines=True) + "\n")
        sys.stderr.flush()
    except (OSError, ValueError):  # ValueError: stderr is closed
        abandon(sys.stderr)


@contextmanager
def saying_after(seconds: float, text: str) -> Iterator[None]:
    """Write a line to stderr if the block has not ended after some seconds."""
    import threading  # only commands that wait need it

    timer = threading.Timer(seconds, say, [text])
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def abandon(stream: TextIO) -> None:
    """Redirect a stream that cannot be written to the null device.

    Python flushes stdout and stderr when the process ends. That would fail again and change the exit code to 120.
    """
    with suppress(OSError, ValueError):
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, stream.fileno())
        os.close(nowhere)
