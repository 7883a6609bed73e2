"""Read files that a user names.

A device, a pipe or a file of /proc is refused, because reading it may never end. A file that is too large is refused
too.

Whether a path exists is asked with `os.path`: `Path.exists` raises an error if the path is too long for the system.
"""

from __future__ import annotations

import os
import stat
from pathlib import Path

from llmbench.errors import SpecError

__all__ = ["MOST_BYTES", "open_regular", "read_bytes", "read_text", "special"]

MOST_BYTES = 32 * 1024**2
"""The largest size of a config, of an index or of the header of a shard, in bytes.

The largest real configs and indexes have less than 10% of it."""

_KINDS = {
    stat.S_IFDIR: "a folder",
    stat.S_IFIFO: "a pipe",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
    stat.S_IFSOCK: "a socket",
}


def open_regular(path: Path) -> int:
    """Open a regular file for reading and return its descriptor. Links are followed.

    Raises SpecError if the file cannot be opened, or if it is a folder, a pipe, a device, a socket or a file of /proc.
    """
    try:
        # O_NONBLOCK: without it, opening a pipe waits for a writer
        file = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    except (OSError, ValueError) as problem:  # ValueError: the path contains a character that no file name can have
        raise SpecError(f"cannot read {path}: {_reason(problem)}") from None
    what = special(file)
    if what is None:
        return file
    os.close(file)
    raise SpecError(f"cannot read {path}: it is {what}", hint="give the path of a regular file")


def special(file: int) -> str | None:
    """Return what an open file is, such as `a pipe` or `a file of /proc`. None: it is a regular file."""
    found = os.fstat(file)
    if found.st_dev == _proc_device():
        return "a file of /proc"
    kind = stat.S_IFMT(found.st_mode)
    return None if kind == stat.S_IFREG else _KINDS.get(kind, "not a regular file")


def _proc_device() -> int | None:
    """Return the number of the file system of /proc. None if the system has none."""
    try:
        found = os.stat("/proc").st_dev
    except OSError:
        return None
    return None if found == os.stat("/").st_dev else found


def read_bytes(path: Path, most_bytes: int = MOST_BYTES) -> bytes:
    """Return the content of a regular file. Raises SpecError if it cannot be read or has more than `most_bytes`."""
    content = bytearray()  # grows with the file: the size that the file system states is 0 for some files
    with open(open_regular(path), "rb") as file:
        size = os.fstat(file.fileno()).st_size
        try:
            while max(size, len(content)) <= most_bytes and (part := file.read(2**20)):
                content += part
        except OSError as problem:
            raise SpecError(f"cannot read {path}: {_reason(problem)}") from None
    if max(size, len(content)) > most_bytes:
        raise SpecError(f"cannot read {path}: it has more than {most_bytes:,} bytes")
    return bytes(content)


def read_text(path: Path, most_bytes: int = MOST_BYTES) -> str:
    """Return the text of a regular UTF-8 file of up to `most_bytes`. Raises SpecError if it is no such file."""
    try:
        return read_bytes(path, most_bytes).decode()
    except UnicodeDecodeError:
        raise SpecError(f"cannot read {path}: it is not a UTF-8 text file") from None


def _reason(problem: Exception) -> str:
    return problem.strerror or str(problem) if isinstance(problem, OSError) else str(problem)
