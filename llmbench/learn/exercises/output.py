"""Read what the process of a student prints, until the process ends."""

from __future__ import annotations

import os
import select
import subprocess
import time

__all__ = ["Output"]

MOST_BYTES = 2**16
"""The largest output that is kept, in bytes."""
PAUSE_S = 0.05
"""The longest time between two looks at the process, in seconds."""


class Output:
    """The first `MOST_BYTES` of the output of a process, whose `stdout` is a pipe."""

    def __init__(self) -> None:
        self._kept = bytearray()
        self._more = False

    def read(self, process: subprocess.Popen[bytes], timeout_s: float) -> None:
        """Read until the process ends. Its own processes can keep the pipe open for longer, so the end of the pipe is
        not awaited.

        Raises subprocess.TimeoutExpired if the process does not end in `timeout_s` seconds.
        """
        assert process.stdout is not None
        pipe = process.stdout.fileno()
        deadline = time.monotonic() + timeout_s
        is_open = True
        while process.poll() is None:
            if time.monotonic() >= deadline:
                raise subprocess.TimeoutExpired(process.args, timeout_s)
            if is_open:
                is_open = self._part(pipe, PAUSE_S)
            else:
                process.wait(max(deadline - time.monotonic(), 0))
        while is_open and not self._more:  # the output that the process wrote last
            is_open = self._part(pipe, 0)

    def _part(self, pipe: int, timeout_s: float) -> bool:
        """Read what is in the pipe. Return whether there can be more: after no wait, only if something was there."""
        if not select.select([pipe], [], [], timeout_s)[0]:
            return timeout_s > 0
        part = os.read(pipe, MOST_BYTES)
        room = MOST_BYTES - len(self._kept)
        self._kept += part[:room]
        self._more |= len(part) > room
        return bool(part)

    @property
    def text(self) -> str:
        """The output as text, with a note if it is longer than what is kept."""
        text = self._kept.decode(errors="replace")
        return f"{text}\n(the output after {MOST_BYTES // 1024} KiB is not shown)\n" if self._more else text
