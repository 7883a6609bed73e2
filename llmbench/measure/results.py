"""Result files in JSON lines. Rows are written as soon as they are measured.

A line is a header or a row. A session writes one header, with command, environment and reference measurements. A row
has the result of one implementation at one case, including the raw samples. Values are in base units, and null is
unknown. `docs/concepts/measuring.md` documents the fields.

If the fields change, `SCHEMA` gets a new version. Files of `OLDER_SCHEMAS` can still be read.
"""

from __future__ import annotations

import math
import re
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeAlias

import msgspec

from llmbench.errors import LLMBenchError
from llmbench.measure.energy import Energy
from llmbench.measure.environment import Environment
from llmbench.measure.measurement import Measurement, MemoryPeak
from llmbench.measure.reference import ReferenceMeasurements
from llmbench.printable import printable
from llmbench.spec.reading import read_bytes

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
    "differences",
    "read",
]

SCHEMA = "llmbench.results/2"
OLDER_SCHEMAS = ("llmbench.results/1",)

HOST = ("cpu", "cpu_count", "threads")
"""The fields of `Environment` that describe the CPU. A file with rows of a GPU is continued although they differ."""

ENDED_SESSION = "ended_session"
"""The key in `Row.extra` that marks the row that ended a session, because the candidate lost the GPU or other ranks."""

MOST_BYTES = 2**29
"""The largest size of a result file, in bytes."""

_HUGE_INTEGER = re.compile(rb"(?<=[:,\[\s-])\d{31}")
"""Matches an integer that no measurement has, and that a float cannot represent if it has some hundred digits."""

_ANSWER = re.compile(rb'\s*\{\s*"schema":\s*"llmbench\.(?!results/)([\w.-]{1,40})/')
"""Matches the beginning of an answer of a command in JSON."""

Scalar: TypeAlias = bool | int | float | str | None
Status = Literal["ok", "INCORRECT", "OOM", "n/a", "FAILED"]
Key: TypeAlias = tuple[str, tuple[tuple[str, Scalar], ...], str]
"""The key that identifies a row: experiment, case, implementation."""


class Check(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The comparison of one tensor with its reference.

    `error`: the error of the candidate. `plain_error`: the error of plain torch. `budget`: the largest error that is
    allowed. All three are relative to the norm or the largest element of the reference (see `kernels.proof.accuracy`).
    None stands for NaN or infinity.
    """

    tensor: str
    error: float | None
    plain_error: float | None
    budget: float | None
    passed: bool

    @classmethod
    def from_verdict(cls, verdict: Any) -> Check:
        """Return the check for a `Verdict` of `kernels.proof.accuracy`."""
        values = verdict._asdict()
        for name in ("error", "plain_error", "budget"):
            values[name] = values[name] if math.isfinite(values[name]) else None
        return cls(**values)

    def fault(self) -> str:
        """Return a text with the tensor's error and error budget."""
        error, budget = (f"{x:.1e}" if x is not None else "not a number" for x in (self.error, self.budget))
        return f"{self.tensor}: error {error}, budget {budget}"


class Header(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag_field="line", tag="header"):
    """The first line of a session in a result file. `inputs`: the arguments of the command."""

    schema: str = SCHEMA
    command: str
    inputs: dict[str, Any]
    environment: Environment
    reference_measurements: ReferenceMeasurements | None = None
    started_at: str = msgspec.field(default_factory=lambda: datetime.now(UTC).isoformat(timespec="seconds"))


class Row(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag_field="line", tag="row"):
    """The result of one implementation at one case.

    `measurement`: the time, if the status is "ok". `reason`: the reason why there is no time, for any other status.
    `need_bytes`: the predicted memory of the inputs and the call, in bytes.
    `work_flops`, `work_bytes`: the FLOPs and bytes of one call, from the op table.
    `kernels`: the names of the attention kernels that ran.
    `extra`: values that the experiment adds. Their names have units.
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
        # msgspec turns a ValueError into a ValidationError, which names the position in the result file.
        if (self.status == "ok") != (self.measurement is not None):
            raise ValueError("a row must have a measurement if its status is ok, and no measurement otherwise")
        if (self.status == "ok") != (self.reason is None):
            raise ValueError("a row must have a reason if its status is not ok, and no reason otherwise")
        if min(self.need_bytes or 0, self.work_flops or 0, self.work_bytes or 0) < 0:
            raise ValueError("need_bytes, work_flops and work_bytes must not be negative")

    @property
    def key(self) -> Key:
        """The key that identifies the row: experiment, case, implementation."""
        return self.experiment, tuple(sorted(self.case.items())), self.implementation

    @property
    def ended_session(self) -> bool:
        """Whether the candidate of this row lost the GPU or other ranks, which ended the session."""
        return self.extra.get(ENDED_SESSION) is True

    @property
    def seconds(self) -> float | None:
        """The median time in seconds; None without a measurement."""
        return None if self.measurement is None else self.measurement.median_s

    @property
    def flops_per_s(self) -> float | None:
        """The achieved rate in FLOP/s; None without a time or without FLOPs."""
        return self.work_flops / self.seconds if self.work_flops and self.seconds else None

    @property
    def bytes_per_s(self) -> float | None:
        """The achieved memory traffic in bytes/s; None without a time or without bytes."""
        return self.work_bytes / self.seconds if self.work_bytes and self.seconds else None


Line: TypeAlias = Header | Row


class Damage(NamedTuple):
    """A line of a result file that cannot be read. `line`: its number. `problem`: the error message of the decoder."""

    path: str
    line: int
    problem: str

    def __str__(self) -> str:
        return f"{self.path}:{self.line}: {self.problem}"


class Session(NamedTuple):
    """The rows of one session and their header.

    The header is None if the line before the rows is damaged, or if the file does not begin with a header.
    """

    header: Header | None
    rows: list[Row]


class Results(NamedTuple):
    """The content of a result file. `damaged`: the lines that cannot be read.

    If several rows have the same key, only the last row is valid, because the row was measured again.
    """

    path: str
    sessions: list[Session]
    damaged: list[Damage]

    @property
    def headers(self) -> list[Header]:
        """The headers of all sessions. Rows without a header add nothing."""
        return [session.header for session in self.sessions if session.header is not None]

    @property
    def rows(self) -> list[Row]:
        """The rows of all sessions, in the order of the file."""
        return [row for session in self.sessions for row in session.rows]

    def by_key(self) -> dict[Key, Row]:
        """Return the valid row of each key: the last row in the file."""
        return {row.key: row for row in self.rows}

    def headers_by_key(self) -> dict[Key, Header | None]:
        """Return, for each key, the header of the session that measured the valid row."""
        return {row.key: session.header for session in self.sessions for row in session.rows}


def read(path: str | Path) -> Results:
    """Read a result file of the current schema or of an older schema. Damaged lines are listed in `Results.damaged`.

    Raises LLMBenchError if the file cannot be read, has no results, has an unknown schema or is an answer of a command.
    """
    content = read_bytes(Path(path), MOST_BYTES)
    if (answer := _ANSWER.match(content)) is not None:
        command = answer[1].decode().replace(".", " ")
        raise LLMBenchError(
            f"{path} is an answer of `llmbench {command}`, not a result file",
            hint="`llmbench bench EXPERIMENT --output FILE` writes result files",
        )
    lines = content.split(b"\n")
    results = Results(str(path), [], [])
    open_session: Session | None = None
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            decoded = _decode(results.path, line)
        except (msgspec.DecodeError, UnicodeDecodeError) as problem:
            results.damaged.append(Damage(results.path, number, printable(str(problem), most=300)))
            if _may_be_header(line):  # of the rows that follow
                open_session = None
            continue
        if isinstance(decoded, Header) or open_session is None:
            header = decoded if isinstance(decoded, Header) else None
            results.sessions.append(open_session := Session(header, []))
        if isinstance(decoded, Row):
            open_session.rows.append(decoded)
    if not results.sessions:
        problem_text = str(results.damaged[0]) if results.damaged else f"{path} is empty"
        raise LLMBenchError(
            f"no results: {problem_text}",
            hint="a result file has one JSON object per line; the first object is a header",
        )
    return results


def _may_be_header(line: bytes) -> bool:
    """Return whether a damaged line may be a header, or may contain one behind the start of a row."""
    return not line.startswith(b'{"line":"row"') or b'"line":"header"' in line


def _decode(path: str, line: bytes) -> Line:
    """Decode one line of a result file. Raises LLMBenchError for an unknown schema, DecodeError for a damaged line."""
    if _HUGE_INTEGER.search(line):
        raise msgspec.DecodeError("it has an integer of more than 30 digits")
    try:
        fields = msgspec.json.decode(line)
    except RecursionError:
        raise msgspec.DecodeError("it is nested too deeply") from None
    if isinstance(fields, dict):
        schema = fields.get("schema", SCHEMA)
        if schema not in (SCHEMA, *OLDER_SCHEMAS):
            raise LLMBenchError(f"{path} has the schema {schema}; this llmbench reads {SCHEMA} and older schemas")
        _rename_old_names(fields)
    return msgspec.convert(fields, Line)


def _rename_old_names(fields: dict[str, Any]) -> None:
    """Rename the keys and case values of llmbench.results/1 to the present names.

    A line of the current schema stays as it is.
    """
    _rename(fields, anchors="reference_measurements", figures="extra")
    case = fields.get("case")
    if isinstance(case, dict) and case.get("what") == "by experts a token":  # a sweep of `bench moe`
        case["what"] = "by experts per token"
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
    """Rename keys of a JSON object (`old=new`). Does nothing if `fields` is no object: the decoder reports that."""
    if isinstance(fields, dict):
        for old, new in names.items():
            if old in fields:
                fields[new] = fields.pop(old)


def differences(before: Environment, after: Environment) -> list[str]:
    """Return a text for each field in which two environments differ: "name: before → after"."""
    lines = []
    for name in before.__struct_fields__:
        was, now = (getattr(place, name) for place in (before, after))
        if was != now:
            lines.append(f"{name}: {was if was is not None else 'unknown'} → {now if now is not None else 'unknown'}")
    return lines
