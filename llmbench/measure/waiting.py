"""How long threads of this process waited for a core that others had: what lengthens a time and is not the call's."""

from __future__ import annotations

import os

__all__ = ["waited_s"]

TASKS = "/proc/self/task"


def waited_s() -> float | None:
    """Seconds that the threads of this process together have been ready to run and did not (Linux, schedstat: the
    second figure, nanoseconds); None where the system does not count them."""
    total, seen = 0, False
    try:
        for task in os.listdir(TASKS):
            try:
                with open(f"{TASKS}/{task}/schedstat", "rb") as file:
                    ran, waited, _ = map(int, file.read().split())
            except (FileNotFoundError, ProcessLookupError):  # it ended meanwhile
                continue
            total, seen = total + waited, seen or ran > 0
    except (OSError, ValueError):
        return None
    return total * 1e-9 if seen else None
