"""The kinds of files that `llmbench validate` reads, and the columns that a kind needs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from importlib import import_module
from pathlib import Path
from typing import Literal, NamedTuple

from llmbench.errors import LLMBenchError, unknown
from llmbench.validation.comparison import Answer, Item
from llmbench.validation.rows import MOST_CHARACTERS, Row, read_rows

Kind = Literal["weights", "kv", "engine", "memory"]


class FileKind(NamedTuple):
    """A kind of file.

    needs: columns without which llmbench cannot read the file. names: columns whose texts name a row.
    reader: module of llmbench.validation with the function `answer`, which compares one row. It raises LLMBenchError
        with the reason if llmbench has no figure for the row.
    """

    name: str
    kind: Kind
    needs: tuple[str, ...]
    names: tuple[str, ...]
    reader: str


FILES = (
    FileKind("checkpoints", "weights", ("model", "base", "scheme", "bytes"), ("model", "scheme"), "weights"),
    FileKind("kv_formats", "kv", ("engine", "model", "format", "layers", "given"), ("engine", "model", "format"), "kv"),
    FileKind(
        "engine_logs",
        "engine",
        ("engine", "version", "model", "gpu", "tp"),
        ("engine", "version", "model", "scheme", "kv_dtype"),
        "engine",
    ),
    FileKind(
        "megatron_runs",
        "memory",
        ("mem_max_last", "layers", "hidden", "heads", "seq_len", "micro_batch", "tp", "pp", "logging_stage"),
        ("id",),
        "megatron",
    ),
    FileKind(
        "torchtune_runs",
        "memory",
        ("peak_gib", "model", "method", "num_gpus", "micro_batch", "max_seq_len", "dtype", "optimizer"),
        ("id", "model", "method"),
        "torchtune",
    ),
    FileKind(
        "megatron_bridge_memory",
        "memory",
        ("card", "model", "settings", "peak_mem_gb", "mem_quantity"),
        ("card", "model", "name"),
        "megatron_bridge",
    ),
    FileKind("training_runs", "memory", ("model", "quantity", "value", "unit", "seq_len"), ("id",), "training_runs"),
)


class Validation(NamedTuple):
    """A file of measurements with the answers for its rows.

    bug: the first error of a row that is no refusal, but a bug of llmbench. None: there was none.
    """

    file: FileKind
    columns: list[str]
    items: list[Item]
    bug: Exception | None


def validate(kind: Kind, path: Path, by: str | None = None) -> Validation:
    """Compare the rows of a file with what llmbench computes. by: column whose values group the rows.

    Raises LLMBenchError if the file cannot be read or lacks columns.
    """
    columns, rows = read_rows(path)
    file = _file_kind(kind, columns, path)
    if by is not None and by not in columns:
        raise unknown("column", by, columns)
    answer: Callable[[Row], Answer] = import_module(f"llmbench.validation.{file.reader}").answer
    items: list[Item] = []
    bug: Exception | None = None
    for row in rows:
        found, reason = None, None
        try:
            found = answer(row)
        except LLMBenchError as refusal:
            reason = f"{refusal}; {refusal.hint}" if refusal.hint else str(refusal)
        except Exception as problem:  # a bug with one row must not lose the other rows
            reason, bug = f"llmbench has a bug with this row: {type(problem).__name__}", bug or problem
        group = None if by is None else row.json(by)[:MOST_CHARACTERS]
        items.append(Item(line=row.line, name=_name(file, row), group=group, answer=found, reason=reason))
    return Validation(file, columns, items, bug)


def _name(file: FileKind, row: Row) -> str:
    """Return what a row is about: the texts of its columns with names, else its model and its line."""
    names = list(filter(None, map(row.json, file.names)))
    return " ".join(names or filter(None, [row.json("model"), f"line {row.line}"]))[:MOST_CHARACTERS]


def _file_kind(kind: Kind, columns: Sequence[str], path: Path) -> FileKind:
    """Return the kind of file that has these columns. Raises LLMBenchError if a needed column is missing."""
    candidates = [file for file in FILES if file.kind == kind]
    if not candidates:
        raise LLMBenchError(
            f"llmbench cannot read files of kind `{kind}`", hint="it reads weights, kv, engine and memory"
        )
    missing = {file: [name for name in file.needs if name not in columns] for file in candidates}
    file = min(candidates, key=lambda file: len(missing[file]))
    if not missing[file]:
        return file
    wanted = "; or ".join(f"{', '.join(file.needs)} ({file.name})" for file in candidates)
    raise LLMBenchError(
        f"{path}: a file of kind `{kind}` needs the column `{missing[file][0]}`", hint=f"needed columns: {wanted}"
    )
