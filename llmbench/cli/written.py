"""The files that commands write: which file may be replaced, and how.

An answer replaces an empty file, and an earlier answer of the same kind: both begin with the same line, or with the
same schema in JSON. Every other file is refused: it may be the input of the command, weights, results or a text.
"""

from __future__ import annotations

import errno
import io
import os
import re
import secrets
import stat
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import TextIO

from llmbench.cli.messages import say
from llmbench.errors import LLMBenchError

__all__ = ["refuse_loss", "write_file"]

_RESULT_LINE = re.compile(rb'"line"\s{0,9}:\s{0,9}"(header|row)"')
"""Matches a part of each line of a result file, also if another program wrote the JSON with other spaces."""

_BEGINNING = re.compile(r'\{\s*"schema": "llmbench\.[\w.-]+/|\s*[^\n]+')
"""Matches the schema of an answer in JSON without its version, or the first line of another answer."""

_HEAD_BYTES = 2**16
_MOST_CHARACTERS = 2**14
"""The largest part of a first line that is compared, in characters. It fits into _HEAD_BYTES."""


def refuse_loss(option: str, path: Path, replaceable: re.Pattern[bytes] | None = None) -> None:
    """Raise LLMBenchError if the file of `option` has a content, unless its beginning matches `replaceable`."""
    head = _head(path)
    if not head or (replaceable is not None and replaceable.match(head)):
        return
    if _RESULT_LINE.search(head):
        raise LLMBenchError(
            f"{option} {path} contains results, which would be lost",
            hint="use another file; `llmbench bench --resume` continues an existing result file",
        )
    raise LLMBenchError(
        f"{option} {path} exists, and its content would be lost",
        hint="give the name of a new file, or remove this file first",
    )


def _head(path: Path) -> bytes:
    """Return the first bytes of a file. They are empty if there is no file, or if it is a device or a pipe."""
    try:
        if not stat.S_ISREG(os.stat(path).st_mode):
            return b""
    except FileNotFoundError:
        return b""
    with path.open("rb") as file:
        return file.read(_HEAD_BYTES)


def write_file(
    path: Path, write: Callable[[TextIO], object], *, option: str = "--output", replaces: bool = True
) -> None:
    """Write the file of `option` with the function `write`.

    `replaces`: whether the file may replace an earlier answer. Otherwise, it replaces no file with content.

    Raises LLMBenchError if the file cannot be written, or if a content would be lost. The old content then stays.
    """
    text = io.StringIO()
    write(text)
    beginning = _BEGINNING.match(text.getvalue()) if replaces else None
    content = text.getvalue().encode()
    try:
        refuse_loss(option, path, beginning and re.compile(re.escape(beginning[0][:_MOST_CHARACTERS].encode())))
        _write(path, content)
    except OSError as problem:
        unread = problem.errno == errno.ENXIO and path.is_fifo()
        reason = "no program reads this pipe" if unread else problem.strerror
        raise LLMBenchError(f"cannot write {path}: {reason}") from None
    say(f"wrote {path}")


def _write(path: Path, content: bytes) -> None:
    """Write a file under a temporary name, and rename it. Devices and pipes are written directly, and links are kept.

    Raises OSError.
    """
    mode = None
    with suppress(FileNotFoundError):
        mode = os.stat(path).st_mode
    if mode is not None and not stat.S_ISREG(mode):
        file = os.open(path, os.O_WRONLY | os.O_NONBLOCK)  # a pipe without a reader is refused, not waited for
        os.set_blocking(file, True)
        with open(file, "wb") as stream:
            stream.write(content)
        return
    place = path.resolve()
    if mode is not None and not os.access(place, os.W_OK):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
    temporary = place.with_name(f".llmbench-{secrets.token_hex(8)}")
    try:
        stream = temporary.open("xb")
    except PermissionError:
        if mode is None:
            raise
        place.write_bytes(content)  # the folder cannot be written, but this file of it can
        return
    try:
        with stream:
            if mode is not None:
                os.fchmod(stream.fileno(), stat.S_IMODE(mode))
            stream.write(content)
        os.replace(temporary, place)
    except BaseException:
        with suppress(OSError):
            temporary.unlink()
        raise
