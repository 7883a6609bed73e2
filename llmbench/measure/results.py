"""Result files: JSON lines, written as rows are measured. `docs/concepts/measuring.md` documents the schema.

A line is a header (one per session: command, environment and reference measurements) or a row (one implementation at
one case). Values are in base units and include the raw samples; null is unknown. Every change of the fields gets a new
`SCHEMA`; files of `OLDER_SCHEMAS` are still read.
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
from llmbench.measure.energy import Energy
from llmbench.measure.environment import Environment
from llmbench.measure.measurement import Measurement
from llmbench.measure.memory import MemoryPeak
from llmbench.measure.reference import ReferenceMeasurements

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

SCHEMA = "llmbench.results/2"
OLDER_SCHEMAS = ("llmbench.results/1",)

ENDED_SESSION = "ended_session"
"""The key in `Row.extra` that marks the row of a candidate that lost the GPU or other ranks, which ended the
session."""

Scalar: TypeAlias = bool | int | float | str | None
Status = Literal["ok", "INCORRECT", "OOM", "n/a", "FAILED"]
Key: TypeAlias = tuple[str, tuple[tuple[str, Scalar], ...], str]
"""The identity of a row: experiment, case, implementation."""


class Check(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One tensor compared with its reference. `error`, `plain_error` (that of plain torch) and `budget` are relative to
    the reference's norm or largest element, as defined in `kernels.proof.accuracy`; None stands for NaN or infinity."""

    tensor: str
    error: float | None
    plain_error: float | None
    budget: float | None
    passed: bool

    @classmethod
    def of(cls, verdict: Any) -> Check:
        """Make a check from a `Verdict` of `kernels.proof.accuracy`."""
        values = verdict._asdict()
        for name in ("error", "plain_error", "budget"):
            values[name] = values[name] if math.isfinite(values[name]) else None
        return cls(**values)

    def fault(self) -> str:
        """Return the tensor's error and its budget as text."""
        error, budget = (f"{x:.1e}" if x is not None else "not a number" for x in (self.error, self.budget))
        return f"{self.tensor}: error {error}, budget {budget}"


class Header(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag_field="line", tag="header"):
    """The first line of a session; the rows below it belong to that session. `inputs`: the command's arguments."""

    schema: str = SCHEMA
    command: str
    inputs: dict[str, Any]
    environment: Environment
    reference_measurements: ReferenceMeasurements | None = None
    started_at: str = msgspec.field(default_factory=lambda: datetime.now(UTC).isoformat(timespec="seconds"))


class Row(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag_field="line", tag="row"):
    """One implementation at one case: a measurement if its status is "ok", else the reason why there is none.

    `work_flops`, `work_bytes`: the work of one call according to the op table. `need_bytes`: predicted memory of the
    inputs and the call. `kernels`: the attention kernels that ran. `extra`: values that an experiment adds, with units
    in their names.
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
    extra: dict[str, Scalar] = {}

    def __post_init__(self) -> None:
        # msgspec turns a ValueError into a ValidationError that names the place in the file.
        if (self.status == "ok") != (self.measurement is not None):
            raise ValueError("a row needs a measurement if its status is ok, and must have none otherwise")
        if (self.status == "ok") != (self.reason is None):
            raise ValueError("a row needs a reason if its status is not ok, and must have none otherwise")

    @property
    def key(self) -> Key:
        """The identity of the row: experiment, case, implementation."""
        return self.experiment, tuple(sorted(self.case.items())), self.implementation

    @property
    def ended_session(self) -> bool:
        """Whether this row ended its session, because its candidate lost the GPU or other ranks."""
        return self.extra.get(ENDED_SESSION) is True

    @property
    def seconds(self) -> float | None:
        """The median in seconds; None without a measurement."""
        return None if self.measurement is None else self.measurement.median_s

    @property
    def flops_per_s(self) -> float | None:
        """Achieved rate of the row's FLOPs; None for work without products."""
        return self.work_flops / self.seconds if self.work_flops and self.seconds else None

    @property
    def bytes_per_s(self) -> float | None:
        """Achieved rate of the row's bytes."""
        return self.work_bytes / self.seconds if self.work_bytes and self.seconds else None


Line: TypeAlias = Header | Row


class Damage(NamedTuple):
    """A line that cannot be read, by its number, and the problem."""

    path: str
    line: int
    problem: str

    def __str__(self) -> str:
        return f"{self.path}:{self.line}: {self.problem}"


class Session(NamedTuple):
    """A header and its rows. The header is None for rows at the beginning of a file that has no header there."""

    header: Header | None
    rows: list[Row]


class Results(NamedTuple):
    """The content of a file. `damaged`: the lines that were left out. If several rows have the same key, the last row
    is valid, because it was measured again."""

    path: str
    sessions: list[Session]
    damaged: list[Damage]

    @property
    def headers(self) -> list[Header]:
        """The headers of all sessions that have one."""
        return [session.header for session in self.sessions if session.header is not None]

    @property
    def rows(self) -> list[Row]:
        """The rows of all sessions, in the order written."""
        return [row for session in self.sessions for row in session.rows]

    def by_key(self) -> dict[Key, Row]:
        """The valid row of each key."""
        return {row.key: row for row in self.rows}

    def headers_by_key(self) -> dict[Key, Header | None]:
        """The header of the session that measured the valid row of each key."""
        return {row.key: session.header for session in self.sessions for row in session.rows}


def read(path: str | Path) -> Results:
    """Read a file of the current schema or an older one. Damaged lines are listed with their numbers and left out.

    Raises LLMBenchError for a file without results and for an unknown schema.
    """
    try:
        lines = Path(path).read_bytes().split(b"\n")
    except OSError as problem:
        raise LLMBenchError(f"cannot read {path}: {problem.strerror}") from None
    results = Results(str(path), [], [])
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            decoded = _decode(results.path, line)
        except (msgspec.DecodeError, UnicodeDecodeError) as problem:
            results.damaged.append(Damage(results.path, number, str(problem)))
            continue
        if isinstance(decoded, Header):
            results.sessions.append(Session(decoded, []))
            continue
        if not results.sessions:
            results.sessions.append(Session(None, []))
        results.sessions[-1].rows.append(decoded)
    if not results.sessions:
        problem_text = str(results.damaged[0]) if results.damaged else f"{path} is empty"
        raise LLMBenchError(
            f"no results: {problem_text}", hint="a result file has one JSON object per line, the first is a header"
        )
    return results


def _decode(path: str, line: bytes) -> Line:
    """Decode one line. Raises LLMBenchError for an unknown schema, DecodeError for a damaged line."""
    fields = msgspec.json.decode(line)
    if isinstance(fields, dict):
        schema = fields.get("schema", SCHEMA)
        if schema not in (SCHEMA, *OLDER_SCHEMAS):
            raise LLMBenchError(f"{path} has the schema {schema}; this llmbench reads {SCHEMA} and older")
        _rename_old_keys(fields)
    return msgspec.convert(fields, Line)


def _rename_old_keys(fields: dict[str, Any]) -> None:
    """Give the keys of llmbench.results/1 their present names. Lines of the current schema do not have the old keys."""
    _rename(fields, anchors="reference_measurements", figures="extra")
    if fields.get("schema") in OLDER_SCHEMAS:
        fields["schema"] = SCHEMA
    _rename(fields.get("memory"), held_bytes="resident_bytes")
    timed = [fields]
    references = fields.get("reference_measurements")
    if isinstance(references, dict):
        timed += references.values()
    for timing in timed:
        _rename(timing, what="description")
        if isinstance(timing, dict):
            _rename(timing.get("measurement"), waited="run_queue_share", meeting_s="barrier_s")


def _rename(fields: Any, **names: str) -> None:
    """Rename keys of a JSON object: `old=new`. Do nothing if `fields` is no object; the decoder refuses it."""
    if isinstance(fields, dict):
        for old, new in names.items():
            if old in fields:
                fields[new] = fields.pop(old)


class Store:
    """A result file that rows are appended to.

    `existing`: the file's content when it was opened. `notes`: warnings about rows of different sessions in one file.

    Each line is written in one call and is on disk before `write` returns. If a killed session left an incomplete last
    line, new rows begin on the next line, and `read` reports the incomplete line as damaged.
    """

    def __init__(self, path: str | Path, header: Header, *, resume: bool = False) -> None:
        """Open the file and begin a session.

        Raises LLMBenchError if the file exists and `resume` is false, or if it was measured with other inputs, on
        another machine or by other code.
        """
        self.path = Path(path)
        self.existing: Results | None = None
        self.notes: list[str] = []
        if self.path.is_dir():
            raise LLMBenchError(f"{path} is a folder", hint="give the path of a file")
        if self.path.exists() and self.path.stat().st_size:
            if not resume:
                raise LLMBenchError(
                    f"{path} exists already", hint="continue it with --resume, or give another file name"
                )
            self.existing = read(path)
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
        """Keys that need not be measured again: those of rows that did not fail, and those of rows that ended a
        session. A candidate that ended a session is not tried again, because it would also end the new session."""
        rows = self.existing.by_key().values() if self.existing else ()
        return {row.key for row in rows if row.status != "FAILED"} | self.ended_session

    @property
    def ended_session(self) -> set[Key]:
        """Keys of the candidates that ended a session."""
        rows = self.existing.by_key().values() if self.existing else ()
        return {row.key for row in rows if row.ended_session}

    def write(self, rows: Iterable[Row]) -> None:
        """Append rows to the file in one write."""
        self._append(list(rows))

    def close(self) -> None:
        """Close the file."""
        os.close(self._file)

    def __enter__(self) -> Store:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _append(self, lines: list[Any]) -> None:
        text = b"".join(msgspec.json.encode(line) + b"\n" for line in lines)
        try:
            while text:  # the first write takes all unless the disk is full
                text = text[os.write(self._file, text) :]
            os.fsync(self._file)
        except OSError as problem:
            raise LLMBenchError(f"cannot write {self.path}: {problem.strerror}") from None

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
            if changes:
                raise LLMBenchError(
                    f"{self.path} was measured on another machine or by other code: {'; '.join(changes)}",
                    hint="the rows of one file must be comparable; begin another file with --output",
                )
            if any(place.commit is not None and place.commit.endswith("+") for place in (was, now)):
                self.notes = [f"files differ from commit {_tree(now)}: earlier rows may come from other code"]


def differences(before: Environment, after: Environment) -> list[str]:
    """List the fields in which two environments differ: "name: before → after"."""
    lines = []
    for name in before.__struct_fields__:
        was, now = (getattr(place, name) for place in (before, after))
        if was != now:
            lines.append(f"{name}: {was if was is not None else 'unknown'} → {now if now is not None else 'unknown'}")
    return lines


def _tree(place: Environment) -> str | None:
    """Return the commit without the + that marks changed files."""
    return None if place.commit is None else place.commit.removesuffix("+")


def _json(value: Any) -> str:
    """Return the JSON text of a value. Tuples and lists give the same text."""
    return msgspec.json.encode(value, order="sorted").decode()
