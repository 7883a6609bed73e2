"""The folder of a training run, which belongs to one process at a time and has no links to other places."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from llmbench.errors import LLMBenchError

__all__ = ["locked", "refuse_link"]


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Keep other processes from training in the folder until the block ends. The end of the process frees it too.

    Raises LLMBenchError if another process trains in it now.
    """
    try:
        file = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    except OSError as problem:
        raise LLMBenchError(f"cannot open the folder {folder}: {problem.strerror}") from None
    try:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise LLMBenchError(
                f"another process trains in {folder} now", hint="wait until it ends, or stop it"
            ) from None
        except OSError:  # a file system without locks
            pass
        yield
    finally:
        os.close(file)


def refuse_link(path: Path) -> None:
    """Raise LLMBenchError if the path is a link. What a run writes there would change a place outside of its folder."""
    if path.is_symlink():
        raise LLMBenchError(f"{path} is a link", hint="a run writes into its own folder only: remove the link")
