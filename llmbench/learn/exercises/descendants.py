"""End the processes that the process of a student leaves behind, also those in a session of their own.

It needs Linux. Elsewhere, such processes go on.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

__all__ = ["ends_descendants"]

PR_SET_CHILD_SUBREAPER = 36
"""The option of Linux's prctl that makes this process the parent of descendants whose own parent has ended."""
MOST_S = 2.0
"""The longest time to end the processes, in seconds. A process that always starts another one could take forever."""


@contextmanager
def ends_descendants() -> Iterator[None]:
    """Kill the children of this process that are new when the block ends, and their descendants.

    This process must start no other ones meanwhile.
    """
    if sys.platform != "linux":
        yield
        return
    prctl = ctypes.CDLL(None).prctl
    before = _children()
    prctl(PR_SET_CHILD_SUBREAPER, 1)
    try:
        yield
    finally:
        deadline = time.monotonic() + MOST_S
        # The children of a killed process become children of this one.
        while (new := _children() - before) and time.monotonic() < deadline:
            for number in new:
                with suppress(ProcessLookupError, ChildProcessError):
                    os.kill(number, signal.SIGKILL)
                    os.waitpid(number, 0)
        prctl(PR_SET_CHILD_SUBREAPER, 0)


def _children() -> set[int]:
    """Return the numbers of the children of this process. Empty if the system does not list them."""
    found: set[int] = set()
    for file in Path("/proc/self/task").glob("*/children"):
        with suppress(OSError):
            found.update(map(int, file.read_text().split()))
    return found
