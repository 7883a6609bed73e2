"""A result file that is open for appending rows. No row is lost if another program removes or changes the file."""

from __future__ import annotations

import fcntl
import hashlib
import os
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import msgspec

from llmbench.errors import LLMBenchError
from llmbench.measure.environment import Environment
from llmbench.measure.results import Header, Key, Results, Row, differences, read
from llmbench.spec.reading import special

__all__ = ["Store", "names_beside"]

HOST = ("cpu", "cpu_count", "threads")
"""The fields of `Environment` that describe the CPU. A file with rows of a GPU is continued although they differ."""


class Store:
    """A result file that is open for appending rows.

    `path`: the path of the file. It changes if the file is lost during the run.
    `existing`: the content that the file had when it was opened; None for a new file.
    `notes`: warnings that rows of different sessions may come from different code, and that the file was lost.

    The rows are on disk before `write` returns. If a killed session left an incomplete last line, new rows begin on a
    new line, and `read` reports the incomplete line as damaged.

    While the file is open, another process cannot open it as a Store. Another program can still remove, replace or
    change the file. `write` and `close` compare its content with what was written. If they differ, they write the rows
    of all sessions to a new file.
    """

    def __init__(self, path: str | Path, header: Header, *, resume: bool = False) -> None:
        """Open the file, and write the header of a new session.

        Raises LLMBenchError if the file has content and `resume` is false, if another process has opened it, if rows of
        it have no header, or if they were measured with other inputs, on another machine or by other code.
        """
        self.path = Path(path)
        self.existing: Results | None = None
        self.notes: list[str] = []
        self._lines: list[Header | Row] = []
        self._lost: str | None = None
        if os.path.exists(self.path) and not os.path.isfile(self.path):
            kind = "a folder" if os.path.isdir(self.path) else "not a regular file"
            raise LLMBenchError(f"{path} is {kind}", hint="give the path of a file")
        self._file = _open(self.path)
        try:
            self._written = _Digest(self._file)
            if self._written.size:
                if not resume:
                    raise LLMBenchError(
                        f"{path} exists already", hint="continue the run with --resume, or give another file name"
                    )
                self.existing = read(path)
                self._refuse_rows_without_header()
                self._refuse_mixture(header)
                if os.pread(self._file, 1, self._written.size - 1) != b"\n":
                    self._written.add(_write(self._file, b"\n"))
            self._append([header])
        except BaseException:
            os.close(self._file)
            raise

    @property
    def done(self) -> set[Key]:
        """The keys of the rows that are not measured again: rows that did not fail, and rows that ended a session.

        A candidate that ended a session is not run again, because it would probably end the new session too.
        """
        rows = self.existing.by_key().values() if self.existing else ()
        return {row.key for row in rows if row.status != "FAILED"} | self.ended_session

    @property
    def ended_session(self) -> set[Key]:
        """The keys of the rows that ended a session."""
        rows = self.existing.by_key().values() if self.existing else ()
        return {row.key for row in rows if row.ended_session}

    @property
    def measured(self) -> list[Row]:
        """The rows of this session, also those that could not be written."""
        return [line for line in self._lines if isinstance(line, Row)]

    def write(self, rows: Iterable[Row]) -> None:
        """Append rows to the file in one write. If the file is lost, write all rows to a new file."""
        self._append(list(rows))

    def close(self) -> None:
        """Close the file. If the file is lost, write all rows to a new file first."""
        try:
            self._append([])
        finally:
            os.close(self._file)

    def __enter__(self) -> Store:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _append(self, lines: list[Any]) -> None:
        self._lines += lines
        loss = self._lost or self._loss()
        if loss is None:
            try:
                self._written.add(_write(self._file, _text(lines)))
            except OSError as problem:
                loss = f"cannot be written any more ({problem.strerror})"
            else:
                loss = self._loss()  # the file may be changed between the first test and the write
        if loss is not None:
            self._move(loss)

    def _loss(self) -> str | None:
        """Return what happened to the file if it no longer has all rows under its name, else None."""
        here = os.fstat(self._file)
        try:
            there = os.stat(self.path)
        except OSError:
            return "was removed"
        if (there.st_dev, there.st_ino) != (here.st_dev, here.st_ino):
            return "was replaced by another file"
        if here.st_size < self._written.size:
            return "was truncated"
        if _Digest(self._file) != self._written:
            return "was changed by another program"
        return None

    def _move(self, loss: str) -> None:
        """Write the lines of all sessions to a new file, which becomes the file of this Store."""
        earlier = self.existing.sessions if self.existing else []
        lines = [line for session in earlier for line in (session.header, *session.rows)] + self._lines
        lost = self.path
        for path in names_beside(lost):
            try:
                file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_APPEND, 0o666)
            except OSError:
                continue
            try:
                _write(file, _text(lines))
            except OSError:
                os.close(file)
                path.unlink()
                continue
            os.close(self._file)
            self.path, self._file, self._written, self._lost = path, file, _Digest(file), None
            self.notes.append(f"{lost} {loss}; all rows are in {path}")
            return
        self._lost = loss  # `close` tries again
        raise LLMBenchError(f"{lost} {loss}, and no other file can be written", hint="free space on the disk")

    def _refuse_rows_without_header(self) -> None:
        assert self.existing is not None
        if any(session.header is None and session.rows for session in self.existing.sessions):
            damage = f" ({self.existing.damaged[0]})" if self.existing.damaged else ""
            raise LLMBenchError(
                f"{self.path} has rows without a whole header, so their machine and inputs are unknown{damage}",
                hint="start a new file with --output; the old file stays as it is, and `llmbench diff` can read it",
            )

    def _refuse_mixture(self, header: Header) -> None:
        assert self.existing is not None
        for before in self.existing.headers:
            if (before.command, _json(before.inputs)) != (header.command, _json(header.inputs)):
                raise LLMBenchError(
                    f"{self.path} was measured with other inputs: {before.command} {_json(before.inputs)}"
                )
            was, now = before.environment, header.environment
            same_commit = _tree(was) == _tree(now)
            changes = differences(was, msgspec.structs.replace(now, commit=was.commit) if same_commit else now)
            if now.device != "cpu":  # a GPU of the same type in a machine with another CPU
                hosts = [change for change in changes if change.partition(":")[0] in HOST]
                self.notes += [f"earlier rows are from a machine with another CPU: {'; '.join(hosts)}"] * bool(hosts)
                changes = [change for change in changes if change not in hosts]
            if changes:
                raise LLMBenchError(
                    f"{self.path} was measured on another machine or by other code: {'; '.join(changes)}",
                    hint="the rows of one file must be comparable; start a new file with --output",
                )
            if any(place.commit is not None and place.commit.endswith("+") for place in (was, now)):
                self.notes.append(f"the code differs from commit {_tree(now)}: earlier rows may come from other code")
        self.notes = list(dict.fromkeys(self.notes))


def _open(path: Path) -> int:
    """Open a file for appending, create it if necessary, and lock it. Raises LLMBenchError if it cannot be written."""
    try:
        file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o666)
    except OSError as problem:
        raise LLMBenchError(f"cannot write {path}: {problem.strerror}") from None
    if (what := special(file)) is not None:  # reading it may never end
        os.close(file)
        raise LLMBenchError(f"cannot write {path}: it is {what}", hint="give the path of a regular file")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(file)
        raise LLMBenchError(
            f"another run writes {path} now", hint="wait until it ends, or give another file name"
        ) from None
    except OSError:  # a file system without locks
        pass
    return file


class _Digest:
    """The size and a hash of the content of a file."""

    def __init__(self, file: int) -> None:
        """Read a file from its beginning to its end."""
        self.size, self._hash = 0, hashlib.blake2b()
        while part := os.pread(file, 2**20, self.size):
            self.add(part)

    def add(self, text: bytes) -> None:
        """Add a text that was appended to the file."""
        self.size += len(text)
        self._hash.update(text)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Digest) and self._hash.digest() == other._hash.digest()

    __hash__ = None  # type: ignore[assignment]


def _text(lines: Iterable[Any]) -> bytes:
    return b"".join(msgspec.json.encode(line) + b"\n" for line in lines)


def _write(file: int, text: bytes) -> bytes:
    """Write a text to the disk, and return it."""
    rest = text
    while rest:  # the first write writes the whole text, unless the disk is full
        rest = rest[os.write(file, rest) :]
    os.fsync(file)
    return text


def names_beside(lost: Path) -> Iterator[Path]:
    """Yield new names in the folder of a lost file, then in the folder for temporary files."""
    for folder in (lost.absolute().parent, Path(tempfile.gettempdir())):
        for number in range(1, 100):
            yield folder / f"{lost.stem}-{number}{lost.suffix}"


def _tree(place: Environment) -> str | None:
    """Return the commit of an environment without the "+" that marks changed files."""
    return None if place.commit is None else place.commit.removesuffix("+")


def _json(value: Any) -> str:
    """Return the JSON text of a value. A tuple has the same text as a list."""
    return msgspec.json.encode(value, order="sorted").decode()
