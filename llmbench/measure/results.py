"""Results in a file: JSON lines, written as they come. `docs/concepts/measuring.md` documents the schema.

A line is a header (what was asked, where, and the anchors: one a session) or a row (one implementation at one case).
Values are in base units, raw samples included, null is unknown. Every change of the fields raises `SCHEMA`.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeAlias

import msgspec

from llmbench.errors import LLMBenchError
from llmbench.measure.anchors import Anchors
from llmbench.measure.energy import Energy
from llmbench.measure.environment import Environment
from llmbench.measure.measurement import Measurement
from llmbench.measure.memory import MemoryPeak

__all__ = [
    "ENDED_SESSION",
    "SCHEMA",
    "Check",
    "Damage",
    "Header",
    "Key",
    "Results",
    "Row",
    "Scalar",
    "Session",
    "Status",
    "Store",
    "differences",
    "read",
]

SCHEMA = "llmbench.results/1"

ENDED_SESSION = "ended_session"
"""The figure of a row that was the last of its session, because the rival took the GPU or other ranks with it."""

Scalar: TypeAlias = bool | int | float | str | None
Status = Literal["ok", "INCORRECT", "OOM", "n/a", "FAILED"]
Key: TypeAlias = tuple[str, tuple[tuple[str, Scalar], ...], str]
"""What a row is about: experiment, case, implementation."""


class Check(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One tensor held against its reference: errors relative to the reference's size, as `kernels.accuracy` has it.
    null is what is no number: NaN or infinite."""

    tensor: str
    error: float | None
    plain_error: float | None
    budget: float | None
    passed: bool

    @classmethod
    def of(cls, verdict: Any) -> Check:
        """A verdict of `kernels.accuracy`."""
        values = verdict._asdict()
        for name in ("error", "plain_error", "budget"):
            values[name] = values[name] if math.isfinite(values[name]) else None
        return cls(**values)

    def fault(self) -> str:
        """What is wrong, for a reader."""
        error, budget = (f"{x:.1e}" if x is not None else "not a number" for x in (self.error, self.budget))
        return f"{self.tensor}: error {error}, budget {budget}"


class Header(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag_field="line", tag="header"):
    """A session that wrote into the file: the rows below it are its own. `inputs` are the command's."""

    schema: str = SCHEMA
    command: str
    inputs: dict[str, Any]
    environment: Environment
    anchors: Anchors | None = None
    started_at: str = msgspec.field(default_factory=lambda: datetime.now(UTC).isoformat(timespec="seconds"))


class Row(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag_field="line", tag="row"):
    """One implementation at one case: with a measurement where its status is "ok", else with the reason.

    `work_flops` and `work_bytes` are those of one call, by the op table; `need_bytes` the analytic memory; `kernels`
    the attention kernels that ran; `figures` what an experiment adds, units in the names.
    """

    experiment: str
    case: dict[str, Scalar]
    implementation: str
    status: Status
    reason: str | None = None
    measurement: Measurement | None = None
    memory: MemoryPeak | None = None
    need_bytes: int | None = None
    energy: Energy | None = None
    work_flops: int | None = None
    work_bytes: int | None = None
    predicted_s: float | None = None
    checks: tuple[Check, ...] = ()
    kernels: tuple[str, ...] = ()
    figures: dict[str, Scalar] = {}

    def __post_init__(self) -> None:
        # msgspec makes these a ValidationError with the place in a file
        if (self.status == "ok") != (self.measurement is not None):
            raise ValueError("a row has a measurement if its status is ok, and only then")
        if (self.status == "ok") != (self.reason is None):
            raise ValueError("a row without a measurement says why, and no other does")

    @property
    def key(self) -> Key:
        """What it is about."""
        return self.experiment, tuple(sorted(self.case.items())), self.implementation

    @property
    def ended_session(self) -> bool:
        """Whether nothing could be measured after it."""
        return self.figures.get(ENDED_SESSION) is True

    @property
    def seconds(self) -> float | None:
        """The median."""
        return None if self.measurement is None else self.measurement.median_s

    @property
    def flops_per_s(self) -> float | None:
        """Rate of the work that must be done; None for work without products."""
        return self.work_flops / self.seconds if self.work_flops and self.seconds else None

    @property
    def bytes_per_s(self) -> float | None:
        """Rate of the traffic that must be."""
        return self.work_bytes / self.seconds if self.work_bytes and self.seconds else None


Line: TypeAlias = Header | Row


class Damage(NamedTuple):
    """A line that cannot be read."""

    path: str
    line: int
    problem: str

    def __str__(self) -> str:
        return f"{self.path}:{self.line}: {self.problem}"


class Session(NamedTuple):
    """A header and the rows that were written after it; None where a file begins without one."""

    header: Header | None
    rows: list[Row]


class Results(NamedTuple):
    """What a file has. Of rows with one key the last counts: it was measured again. `damaged` lines are left out."""

    path: str
    sessions: list[Session]
    damaged: list[Damage]

    @property
    def headers(self) -> list[Header]:
        """Of the sessions that have one."""
        return [session.header for session in self.sessions if session.header is not None]

    @property
    def rows(self) -> list[Row]:
        """Of all sessions, in the order written."""
        return [row for session in self.sessions for row in session.rows]

    def by_key(self) -> dict[Key, Row]:
        """Rows by what they are about."""
        return {row.key: row for row in self.rows}

    def headers_by_key(self) -> dict[Key, Header | None]:
        """Where and beside which anchors each of those rows was measured."""
        return {row.key: session.header for session in self.sessions for row in session.rows}


def read(path: str | Path) -> Results:
    """Read a file; lines that are damaged are told with their numbers, and the others are read.

    Raises LLMBenchError for what is no file of results, or one of another version.
    """
    try:
        lines = Path(path).read_bytes().split(b"\n")
    except OSError as problem:
        raise LLMBenchError(f"cannot read {path}: {problem.strerror}") from None
    found = Results(str(path), [], [])
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        _refuse_other_version(found.path, line)
        try:
            decoded = msgspec.json.decode(line, type=Line)
        except (msgspec.DecodeError, UnicodeDecodeError) as problem:
            found.damaged.append(Damage(found.path, number, str(problem)))
            continue
        if isinstance(decoded, Header):
            found.sessions.append(Session(decoded, []))
            continue
        if not found.sessions:
            found.sessions.append(Session(None, []))
        found.sessions[-1].rows.append(decoded)
    if not found.sessions:
        what = str(found.damaged[0]) if found.damaged else f"{path} is empty"
        raise LLMBenchError(f"no results: {what}", hint="result files have one JSON object a line, a header first")
    return found


def _refuse_other_version(path: str, line: bytes) -> None:
    if b'"schema"' not in line:
        return
    try:
        schema = msgspec.json.decode(line).get("schema", SCHEMA)
    except (msgspec.DecodeError, UnicodeDecodeError, AttributeError):
        return
    if schema != SCHEMA:
        raise LLMBenchError(f"{path} has the schema {schema}; this llmbench reads {SCHEMA}")


class Store:
    """A file that rows are appended to. What is in it when it is opened is kept, and is in `found`; `notes` say what a
    reader must know of the two together.

    A line is whole or it is not there: it is written at once and is on the disk before `write` returns. What a killed
    session left of its last line becomes a damaged line of its own.
    """

    def __init__(self, path: str | Path, header: Header, *, resume: bool = False) -> None:
        """Begin a session. Raises LLMBenchError where the file is there and is not to be resumed, or was measured with
        other inputs, on another machine or by other code."""
        self.path = Path(path)
        self.found: Results | None = None
        self.notes: list[str] = []
        if self.path.is_dir():
            raise LLMBenchError(f"{path} is a folder", hint="name a file in it, which rows are kept in")
        if self.path.exists() and self.path.stat().st_size:
            if not resume:
                raise LLMBenchError(f"{path} is there already", hint="--resume goes on with it; or name another file")
            self.found = read(path)
            self._refuse_mixture(header)
        try:
            self._file = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o666)
        except OSError as problem:
            raise LLMBenchError(f"cannot write {path}: {problem.strerror}") from None
        size = os.fstat(self._file).st_size
        if size and os.pread(self._file, 1, size - 1) != b"\n":
            os.write(self._file, b"\n")
        self._append([header])

    @property
    def done(self) -> set[Key]:
        """What need not be measured again: all that was settled. What failed may do better, unless it ended a session:
        it would end each that tries it again."""
        rows = self.found.by_key().values() if self.found else ()
        return {row.key for row in rows if row.status != "FAILED"} | self.ended_session

    @property
    def ended_session(self) -> set[Key]:
        """What must not be tried again."""
        rows = self.found.by_key().values() if self.found else ()
        return {row.key for row in rows if row.ended_session}

    def write(self, rows: Iterable[Row]) -> None:
        """Append rows, all at once."""
        self._append(list(rows))

    def close(self) -> None:
        """End the session."""
        os.close(self._file)

    def __enter__(self) -> Store:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _append(self, lines: list[Any]) -> None:
        text = b"".join(msgspec.json.encode(line) + b"\n" for line in lines)
        try:
            while text:  # one write, unless the disk is full
                text = text[os.write(self._file, text) :]
            os.fsync(self._file)
        except OSError as problem:
            raise LLMBenchError(f"cannot write {self.path}: {problem.strerror}") from None

    def _refuse_mixture(self, header: Header) -> None:
        assert self.found is not None
        for before in self.found.headers:
            if (before.command, _json(before.inputs)) != (header.command, _json(header.inputs)):
                raise LLMBenchError(
                    f"{self.path} was measured with other inputs: {before.command} {_json(before.inputs)}"
                )
            was, now = before.environment, header.environment
            same_commit = _tree(was) == _tree(now)
            changes = differences(was, msgspec.structs.replace(now, commit=was.commit) if same_commit else now)
            if changes:
                raise LLMBenchError(
                    f"{self.path} was measured elsewhere or by other code: {'; '.join(changes)}",
                    hint="rows of one file are compared with each other; --output begins another",
                )
            if any(place.commit is not None and place.commit.endswith("+") for place in (was, now)):
                self.notes = [f"files differ from commit {_tree(now)}: earlier rows may be of other code"]


def differences(before: Environment, after: Environment) -> list[str]:
    """What is not the same of two places, in words."""
    found = []
    for name in before.__struct_fields__:
        was, now = (getattr(place, name) for place in (before, after))
        if was != now:
            found.append(f"{name}: {was if was is not None else 'unknown'} → {now if now is not None else 'unknown'}")
    return found


def _tree(place: Environment) -> str | None:
    """The commit, whether files differ from it or not."""
    return None if place.commit is None else place.commit.removesuffix("+")


def _json(value: Any) -> str:
    """As it stands in a file, where tuples are lists."""
    return msgspec.json.encode(value, order="sorted").decode()
