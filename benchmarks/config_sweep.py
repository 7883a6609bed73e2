"""Compare llmbench's parameter counts with transformers', for the default config of every model type of transformers.

    python benchmarks/config_sweep.py                             # all model types; 25 s on one core
    python benchmarks/config_sweep.py --type llama --type t5      # only these model types
    python benchmarks/config_sweep.py --only wrong --format json  # only the rows with this outcome
    python benchmarks/config_sweep.py --page docs/concepts/model-types.md  # write the tables of this page

The script writes each default config in two forms: with all keys, and with the keys only that `save_pretrained` writes.
llmbench reads both forms. transformers builds the model on the meta device. Its class is the one for a sequence to
sequence model if there is one, else the one for a masked language model, else the one for a causal language model. Of a
model with other modalities, the text part counts. The counts of all parameters, of the active parameters, of the
elements of matrices and of the buffers must be equal.

A row has one of these outcomes:

- wrong: the counts differ and llmbench does not say so, or llmbench fails. The exit code is then 1.
- approximate: llmbench says that its figures may be inexact, with the reason.
- exact: all counts are equal.
- refused: llmbench does not read this model type. It gives the reason instead of a figure.
- no oracle: transformers has no language model for this config, or cannot build it.

One process computes the rows one after another. If it crashes or takes too long, only the row is lost.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import logging
import multiprocessing
import re
import sys
import traceback
from collections import Counter
from collections.abc import Iterable, Iterator
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import msgspec

from llmbench.errors import LLMBenchError
from llmbench.report.document import Block, Document, Table, table
from llmbench.report.fields import Field, records
from llmbench.report.render import render
from llmbench.sizing.params import count_parameters
from llmbench.spec.huggingface import from_config

OUTCOMES = ("wrong", "approximate", "exact", "refused", "no oracle")
"""The outcomes, in the order of the rows."""

KINDS = ("causal", "masked", "encoder-decoder", "with other modalities", "other")
"""The kinds of model types, by the classes that transformers has for them. "other" has no class for a language model:
a part of another model type, or a model without text."""

SECONDS = 90.0
"""The time limit for each half of a row: reading the config with llmbench, and building the model with transformers."""

Counts = dict[str, int]
"""Numbers of elements: `total`, `active`, `active_matmul` and `buffers`, as in `llmbench params`."""


class Reading(msgspec.Struct):
    """What llmbench makes of one form of a config: counts, or a refusal, or a failure.

    - counts: None if there are no figures.
    - approximate: the reasons why the figures may be inexact.
    - refused: the message of a refusal.
    - failed: the message of an error that is a bug of llmbench.
    """

    counts: Counts | None = None
    approximate: tuple[str, ...] = ()
    refused: str = ""
    failed: str = ""


class Row(msgspec.Struct):
    """The comparison of one model type.

    - form: the form of the config to which the row belongs. "both": both forms give the same.
    - parameters, expected: the counts of all parameters by llmbench and by transformers.
    """

    model_type: str
    kind: str
    outcome: str
    form: str = "both"
    class_name: str | None = None
    parameters: int | None = None
    expected: int | None = None
    reason: str = ""


# The worker process


def read(values: dict[str, Any]) -> Reading:
    """Return what llmbench makes of a config."""
    try:
        spec = from_config(values, name="sweep")
        counted = count_parameters(spec)
    except LLMBenchError as problem:
        return Reading(refused=str(problem))
    except Exception:
        return Reading(failed=traceback.format_exc(limit=-1).strip().replace("\n", " "))
    counts = {
        "total": counted.total,
        "active": counted.active,
        "active_matmul": counted.active_matmul,
        "buffers": counted.buffers,
    }
    return Reading(counts=counts, approximate=spec.approximate)


def default_configs(model_type: str) -> dict[str, dict[str, Any]]:
    """Return the default config of a model type in both forms, as objects of a config.json.

    Some classes cannot build a model from their own default config. The keys that they need are added.
    """
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    from tests.oracles.config_variations import required

    config_class = CONFIG_MAPPING[model_type]
    config = config_class(**required(model_type))
    text = getattr(config, "text_config", None)
    if text is not None and (needed := required(text.model_type)):
        config = config_class(text_config={"model_type": text.model_type, **needed})
    forms = {"all keys": config.to_json_string(use_diff=False), "as saved": config.to_json_string()}
    return {form: {"model_type": model_type, **json.loads(text)} for form, text in forms.items()}


def readings(model_type: str) -> tuple[str, dict[str, Reading] | str]:
    """Return the kind of a model type, and a reading of each form, or why transformers has no default config."""
    from tests.oracles.transformers_meta import kind_of

    kind = kind_of(model_type)
    try:
        forms = default_configs(model_type)
    except Exception as problem:
        return kind, f"transformers cannot create the default config: {_first_line(problem)}"
    return kind, {form: read(values) for form, values in forms.items()}


def truth(model_type: str) -> tuple[str, Counts] | str:
    """Return the name of transformers' class and its counts, or why there are none."""
    from tests.oracles.transformers_meta import NoOracleError, measure

    try:
        counted = measure(default_configs(model_type)["as saved"])
    except NoOracleError as problem:
        return str(problem)
    except Exception as problem:
        return f"transformers cannot build its default config: {_first_line(problem)}"
    buffers = sum(counted.persistent_buffers.values())
    counts = {"total": counted.total, "active": counted.active, "active_matmul": counted.active_matmul}
    return counted.class_name, counts | {"buffers": buffers}


def model_types() -> list[str]:
    """Return all model types of transformers, sorted."""
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    return sorted(CONFIG_MAPPING.keys())


def _first_line(problem: Exception) -> str:
    lines = str(problem).strip().splitlines()
    return f"{type(problem).__name__}: {lines[0][:200] if lines else ''}"


def work(connection: Connection) -> None:
    """Answer the requests of the parent process until it closes the connection.

    A request is a pair: the name of a function, and its arguments.
    """
    sys.path.insert(0, str(Path(__file__).parent.parent))
    logging.disable(logging.WARNING)
    functions = {function.__name__: function for function in (model_types, readings, truth)}
    with contextlib.suppress(EOFError):
        while True:
            name, arguments = connection.recv()
            connection.send(functions[name](*arguments))


# The parent process


class LostError(Exception):
    """The worker process did not answer."""


class Worker:
    """A process that computes answers. A new process replaces a process that crashed or took too long."""

    def __init__(self) -> None:
        self._start()

    def _start(self) -> None:
        context = multiprocessing.get_context("spawn")
        self._connection, theirs = context.Pipe()
        self._process = context.Process(target=work, args=(theirs,), daemon=True)
        self._process.start()
        theirs.close()

    def ask(self, name: str, *arguments: Any) -> Any:
        """Return the result of a function of the worker process. Raises LostError if the process does not answer."""
        self._connection.send((name, arguments))
        try:
            if self._connection.poll(SECONDS):
                return self._connection.recv()
            why = f"no answer within {SECONDS:.0f} s"
        except (EOFError, ConnectionResetError):
            self._process.join()
            why = f"the process ended with code {self._process.exitcode}"
        self._process.kill()
        self._process.join()
        self._start()
        raise LostError(why)


def sweep(chosen: Iterable[str] | None = None) -> Iterator[Row]:
    """Yield a row for each model type. `chosen`: the model types. None: all model types of transformers."""
    worker = Worker()
    for model_type in worker.ask("model_types") if chosen is None else chosen:
        try:
            kind, found = worker.ask("readings", model_type)
        except LostError as problem:
            yield Row(model_type, "", "wrong", reason=f"llmbench did not read the config: {problem}")
            continue
        if isinstance(found, str):
            yield Row(model_type, kind, "no oracle", reason=found)
            continue
        expected: tuple[str, Counts] | str = ""
        if any(reading.counts for reading in found.values()):
            try:
                expected = worker.ask("truth", model_type)
            except LostError as problem:
                expected = f"transformers did not build the model: {problem}"
        rows = [compare(model_type, kind, form, reading, expected) for form, reading in found.items()]
        if len({(row.outcome, row.parameters, row.reason) for row in rows}) == 1:
            rows[0].form = "both"
        yield min(rows, key=lambda row: OUTCOMES.index(row.outcome))


def compare(model_type: str, kind: str, form: str, reading: Reading, expected: tuple[str, Counts] | str) -> Row:
    """Return the row of one form. `expected`: transformers' class and its counts, or why there are none."""
    row = Row(model_type, kind, "exact", form)
    if reading.failed:
        row.outcome, row.reason = "wrong", reading.failed
        return row
    if reading.counts is None:
        row.outcome, row.reason = "refused", reading.refused
        return row
    row.parameters = reading.counts["total"]
    if isinstance(expected, str):
        row.outcome, row.reason = "no oracle", expected
        return row
    row.class_name, counts = expected
    row.expected = counts["total"]
    differs = [f"{name} {reading.counts[name]:,} instead of {counts[name]:,}" for name in counts]
    differs = [text for name, text in zip(counts, differs, strict=True) if reading.counts[name] != counts[name]]
    if reading.approximate:
        row.outcome, row.reason = "approximate", "; ".join(reading.approximate)
    elif differs:
        row.outcome, row.reason = "wrong", "; ".join(differs)
    return row


# The answer

FIELDS: tuple[Field[Row], ...] = (
    Field("model_type", "model type"),
    Field("kind", "kind", spare=3),
    Field("outcome", "outcome"),
    Field("form", "form", spare=4),
    Field("class_name", "class", sparse=True, spare=2),
    Field("parameters", "parameters", "count", sparse=True),
    Field("expected", "transformers", "count", sparse=True, spare=1),
    Field("reason", "reason", wraps=True),
)


def summary(rows: list[Row]) -> Table:
    """Return the table of the numbers of model types, by kind and outcome."""
    counted = Counter((row.kind, row.outcome) for row in rows)
    columns: list[Field[Any]] = [Field("kind", "kind of model")]
    columns += [Field(outcome.replace(" ", "_"), outcome, "count") for outcome in OUTCOMES]
    columns.append(Field("all", "all", "count"))
    lines: list[list[Any]] = []
    for kind in dict.fromkeys((*KINDS, *(row.kind for row in rows))):
        numbers = [counted[kind, outcome] for outcome in OUTCOMES]
        if sum(numbers):
            lines.append([kind or "unknown", *numbers, sum(numbers)])
    lines.append(["all", *(sum(line[place] for line in lines) for place in range(1, len(columns)))])
    return Table(columns=columns, rows=lines, total=True)


def document(rows: list[Row], only: str | None) -> Document:
    """Return the answer. `only`: the outcome of the rows to show. None: all rows."""
    shown = sorted((row for row in rows if only in (None, row.outcome)), key=_rank)
    blocks = [Block(headline="the default config of each model type of transformers", table=summary(rows))]
    if shown:
        blocks.append(Block(table=table(FIELDS, shown)))
    return Document(
        command="config_sweep",
        inputs={"only": only},
        rows_key="model_types",
        rows=records(FIELDS, shown),
        blocks=blocks,
        tables=[table(FIELDS, shown)] if shown else [],
    )


def _rank(row: Row) -> tuple[int, int]:
    """Return the place of a row in the answer: by outcome, then by kind."""
    return OUTCOMES.index(row.outcome), KINDS.index(row.kind) if row.kind in KINDS else -1


MARKED = re.compile(r"(<!-- sweep: written by benchmarks/config_sweep.py -->\n).*?(<!-- end -->)", re.DOTALL)
"""The part of a page that `--page` writes."""


def page_tables(rows: list[Row]) -> str:
    """Return the tables of the page in Markdown: the numbers, and the reasons why language models are not exact."""
    listed = sorted((row for row in rows if row.kind != "other" and row.outcome not in ("exact", "wrong")), key=_rank)
    reasons = Table(
        columns=[Field(name, name) for name in ("outcome", "model type", "parameters", "reason")],
        rows=[[row.outcome, f"`{row.model_type}`", _difference(row), row.reason.removesuffix(":")] for row in listed],
    )
    blocks = [Block(table=summary(rows)), Block(table=reasons)]
    answer = Document(command="config_sweep", inputs={}, rows_key="model_types", rows=[], blocks=blocks)
    stream = io.StringIO()
    render(answer, "markdown", stream)
    return stream.getvalue()


def _difference(row: Row) -> str | None:
    """Return how the parameters differ from those of transformers. None: one of both is unknown."""
    if row.parameters is None or row.expected is None:
        return None
    return "equal" if row.parameters == row.expected else f"{row.parameters / row.expected - 1:+.1%}"


def main() -> int:
    """Run the command and return the exit code."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--type", action="append", metavar="NAME", help="compare only this model type; repeatable")
    parser.add_argument("--only", choices=OUTCOMES, help="show only the rows with this outcome")
    parser.add_argument("--page", type=Path, metavar="FILE", help="write the tables of this page of the documentation")
    parser.add_argument("--format", choices=("table", "json", "csv", "markdown"), default="table")
    arguments = parser.parse_args()
    rows = []
    for row in sweep(arguments.type):
        rows.append(row)
        if sys.stderr.isatty():
            print(f"\r{len(rows)} model types, now after {row.model_type:40}", end="", file=sys.stderr)
    if sys.stderr.isatty():
        print(file=sys.stderr)
    if arguments.page is not None:
        text = arguments.page.read_text(encoding="utf-8")
        written = MARKED.sub(lambda found: found[1] + page_tables(rows) + found[2], text)
        arguments.page.write_text(written, encoding="utf-8")
    else:
        render(document(rows, arguments.only), arguments.format, sys.stdout)
    return 1 if any(row.outcome == "wrong" for row in rows) else 0


if __name__ == "__main__":
    sys.exit(main())
