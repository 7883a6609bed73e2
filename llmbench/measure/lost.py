"""What ends a session of measuring, whichever rival was running."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from llmbench.errors import LLMBenchError

__all__ = ["LostError", "running"]


class LostError(LLMBenchError):
    """This process measures nothing any more: its GPU's context is gone, or the ranks beside it are.

    It is no failure of one rival, after which the next has its turn. `rival`: which was running, where that is known.
    """

    exit_code = 3
    rival: str | None = None


@contextmanager
def running(rival: str) -> Iterator[None]:
    """What is lost inside is lost by this rival."""
    try:
        yield
    except LostError as problem:
        problem.rival = rival
        raise
