"""Code that several commands share: options, loading a model, fields about a model, and writing an answer."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Annotated, Literal

import msgspec
import typer

from llmbench.errors import LLMBenchError, UnknownNameError
from llmbench.report.document import Block, Document, Table
from llmbench.report.fields import Field, record
from llmbench.report.render import Format, render
from llmbench.sizing.lengths import beyond_positions
from llmbench.spec.catalog import find_model
from llmbench.spec.model import ModelSpec

MODEL_HELP = (
    "Model: a name from `llmbench specs list`, a spec .toml, a Hugging Face config.json or its folder, or "
    "hf:organisation/name."
)
LARGEST = 2**31
"""The largest number that an option with a number accepts."""


def positive_integer(text: str | int) -> int:
    """Parse the value of an option as a whole number. Raises BadParameter unless it is from 1 to LARGEST."""
    try:
        number = int(text)
    except ValueError:
        raise typer.BadParameter(f"{text!r} is not a whole number") from None
    if not 1 <= number <= LARGEST:
        raise typer.BadParameter(f"{number} is not between 1 and {LARGEST}")
    return number


def token_count(text: str | int) -> int:
    """Parse the value of an option as a number of tokens. `128k` stands for 128 × 1024, and `1m` for 1024 × 1024.

    Raises BadParameter unless the number is from 1 to LARGEST.
    """
    number, unit = str(text).strip(), 1
    if number[-1:].lower() in ("k", "m"):
        number, unit = number[:-1], {"k": 1024, "m": 1024**2}[number[-1].lower()]
    if not number.isascii() or not number.isdigit():
        raise typer.BadParameter(f"{text!r} is not a number of tokens, such as 8192 or 8k")
    return positive_integer(int(number[:20]) * unit)


Models = Annotated[list[str], typer.Argument(metavar="MODEL...", help=MODEL_HELP, show_default=False)]
OneModel = Annotated[str, typer.Argument(metavar="MODEL", help=MODEL_HELP, show_default=False)]
Set = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="KEY=VALUE",
        help="Change a field of the model's spec, for example num_key_value_heads=8. Can be repeated.",
        show_default=False,
    ),
]
FORMAT_OF_SUFFIX: dict[str, Format] = {".json": "json", ".csv": "csv", ".md": "markdown", ".markdown": "markdown"}
"""The format of a file that --output names, if --format is not given."""


def _format(context: typer.Context, value: Format) -> Format:
    """Return the value of --format. If it is not given, the name of the file of --output decides."""
    source = context.get_parameter_source("format")
    output = context.params.get("output")
    if output is None or source is None or source.name != "DEFAULT":
        return value
    return FORMAT_OF_SUFFIX.get(Path(output).suffix.lower(), value)


As = Annotated[
    Format,
    typer.Option(
        "--format",
        "-f",
        help="Format of the answer. With --output, the default follows the file name: .json, .csv or .md.",
        callback=_format,
    ),
]
Output = Annotated[
    Path | None,
    # eager, because the callback of --format reads the value
    typer.Option(
        "--output", "-o", metavar="FILE", help="Write the answer to a file.", show_default=False, is_eager=True
    ),
]
Explain = Annotated[bool, typer.Option("--explain", help="Also show each formula with its numbers filled in.")]
Seq = Annotated[
    int,
    typer.Option("--seq", metavar="TOKENS", help="Tokens per sequence, for example 8192 or 8k.", parser=token_count),
]
SEQ = 4096
"""The default of --seq, in tokens."""
CacheType = Literal["bf16", "fp16", "fp32", "fp8", "int8", "int4"]
Batch = Annotated[int, typer.Option("--batch", metavar="N", help="Number of sequences.", parser=positive_integer)]


def load(text: str, changes: list[str] | None) -> ModelSpec:
    """Return the spec of the model that `text` names. `changes`: values of --set, which replace fields of the spec."""
    folder = Path(text)
    if not text.strip() or (folder.is_dir() and not (folder / "config.json").is_file()):
        problem = f"no config.json in the folder `{folder}` ({folder.absolute()})" if text.strip() else "MODEL is empty"
        raise UnknownNameError(problem, hint="`llmbench specs list` shows the built-in models")
    spec = find_model(text)
    if changes:
        from llmbench.spec.override import override, parse_assignments

        spec = override(spec, parse_assignments(changes))
    return spec


class AboutModel(msgspec.Struct, kw_only=True):
    """A model, with the reasons and notes that a reader needs to interpret the figures of the model.

    `doubts`: reasons why the figures of this command are approximate, in addition to the reasons in the spec.
    `tokens`: the sequence length that the user asked for, in tokens.
    """

    spec: ModelSpec
    doubts: tuple[str, ...] = ()
    tokens: int = 0

    @property
    def approximate_because(self) -> list[str]:
        """All reasons why the figures may be inexact: the reasons in the spec, then `doubts`."""
        return [*self.spec.approximate, *self.doubts]

    @property
    def notes(self) -> list[str]:
        """The notes of the spec, and a note if the model cannot read a sequence of `tokens` tokens."""
        return [*self.spec.notes, *length_notes(self.spec, self.tokens)]

    @property
    def title(self) -> str:
        """The name of the model, with "(approximate)" if the figures of the model may be inexact."""
        return f"{self.spec.name} (approximate)" if self.approximate_because else self.spec.name


MODEL_FIELDS: tuple[Field[AboutModel], ...] = (
    Field(
        "model",
        "model",
        value=lambda about: about.spec.name,
        text=lambda about: about.title,
        unbroken=True,
        description="name of the spec",
    ),
    Field(
        "approximate",
        value=lambda about: bool(about.approximate_because),
        description="whether the figures may be inexact",
    ),
    Field("approximate_because", description="list of reasons why the figures may be inexact"),
    Field(
        "notes",
        description="list of notes: the notes of the spec, and a note if the model cannot read so long a sequence",
    ),
)
"""The first fields of each row about a model."""


def model_block(about: AboutModel, *, table: Table | None, context: str = "", lines: Sequence[str] = ()) -> Block:
    """Return a block about one model: a headline, the context of the figures, a table, lines, and the model's notes."""
    from llmbench.report.describe import headline  # imported here, because JSON has no headline

    reasons = [f"approximate: {reason}" for reason in about.approximate_because]
    return Block(
        headline="\n".join(filter(None, [headline(about.spec, approximate=bool(about.doubts)), context])),
        about=record(MODEL_FIELDS, about),
        table=table,
        lines=[*lines, *reasons],
        notes=about.notes,
    )


def approximate_lines(spec: ModelSpec) -> list[str]:
    """Return a line for each reason why figures of the spec may be inexact, and a line for each note of the spec."""
    return [f"approximate: {reason}" for reason in spec.approximate] + [f"note: {note}" for note in spec.notes]


def length_notes(spec: ModelSpec, tokens: int) -> list[str]:
    """Return a list with a note if the model cannot read a sequence of `tokens` tokens, else an empty list."""
    reason = beyond_positions(spec, tokens)
    return [] if reason is None else [reason]


def title(spec: ModelSpec, *, approximate: bool = False) -> str:
    """Return the name of the model, with "(approximate)" if the figures of the model may be inexact."""
    return f"{spec.name} (approximate)" if spec.approximate or approximate else spec.name


def working(activity: str) -> AbstractContextManager[object]:
    """Show on stderr what a slow command is doing, until the block ends. Do nothing if stderr is not a terminal."""
    if not sys.stderr.isatty():
        return nullcontext()
    from rich.console import Console

    return Console(stderr=True).status(f"{activity} …")


def answer(document: Document, format: Format, output: Path | None) -> None:
    """Write a document to the file `output`, or to stdout if `output` is None."""
    if output is None:
        render(document, format, sys.stdout)
        return
    try:
        with output.open("w", encoding="utf-8") as stream:
            render(document, format, stream)
    except OSError as problem:
        raise LLMBenchError(f"cannot write {output}: {problem.strerror}") from None
    sys.stderr.write(f"wrote {output}\n")
