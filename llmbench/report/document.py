"""What a command answers: rows of plain values for machines, tables of the same values for people."""

from __future__ import annotations

from typing import Any, Literal

import msgspec

Unit = Literal[
    "text",
    "count",
    "bytes",
    "kib",
    "mib",
    "gib",
    "gb_per_s",
    "percent",
    "flops",
    "flops_whole",
    "gflops_per_s",
    "tflops_per_s",
    "ratio",
    "joules",
    "seconds",
    "us",
    "ms",
    "number",
]
"""How a value is shown. Values are always held in base units: bytes, FLOPs, joules, seconds, fractions of one."""


class Column(msgspec.Struct, frozen=True):
    """A column: its heading (the renderer adds the unit) and how its values are shown. wraps: text that may go on in
    the next line; name: text whose words are never broken, however narrow the terminal; sparse: left out of a table for
    people where no row has a value; spare: left out where a terminal is too narrow for it, the largest first."""

    title: str
    unit: Unit = "text"
    wraps: bool = False
    name: bool = False
    sparse: bool = False
    spare: int = 0


class Table(msgspec.Struct, kw_only=True):
    """Rows under columns; None is unknown, which is never zero. `total` sets the last row apart."""

    columns: list[Column]
    rows: list[list[Any]]
    title: str = ""
    total: bool = False


class Block(msgspec.Struct, kw_only=True):
    """One part of a report for people: a headline, a table, lines under it. `subject` is the model that the table is
    about (marked where approximate), for formats that have no headline. notes: what a reader must know of the figures;
    lines for people, a column in CSV."""

    headline: str = ""
    subject: str = ""
    table: Table | None = None
    lines: list[str] = []
    notes: list[str] = []


class Document(msgspec.Struct, kw_only=True):
    """A command's answer. `rows_key` names its rows in JSON ("models"); `rows` are plain mappings in base units.
    `environment`: what measured figures depend on, in JSON beside the versions; `also`: what else stands beside the
    rows there. `tables`: what CSV has in place of the blocks' tables, where a row of these does not say by itself what
    it is about."""

    command: str
    inputs: dict[str, Any]
    rows_key: str
    rows: list[dict[str, Any]]
    blocks: list[Block]
    version: int = 1
    environment: dict[str, Any] = {}
    also: dict[str, Any] = {}
    tables: list[Table] = []
