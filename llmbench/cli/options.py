"""Parts that several commands share: options, reading models, the fields about a model, writing the answer."""

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

MODEL_HELP = "A bundled name, a spec .toml, a config.json or its folder, or hf:organisation/name."
LARGEST = 2**31
"""The largest number that an option takes."""


def positive_integer(text: str | int) -> int:
    """The number that an option gives: a whole one from 1 to LARGEST."""
    try:
        number = int(text)
    except ValueError:
        raise typer.BadParameter(f"{text!r} is not a whole number") from None
    if not 1 <= number <= LARGEST:
        raise typer.BadParameter(f"{number} is not from 1 to {LARGEST}")
    return number


Models = Annotated[list[str], typer.Argument(metavar="MODEL...", help=MODEL_HELP, show_default=False)]
OneModel = Annotated[str, typer.Argument(metavar="MODEL", help=MODEL_HELP, show_default=False)]
Set = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="KEY=VALUE",
        help="Change a field of the spec, for example num_key_value_heads=8.",
        show_default=False,
    ),
]
As = Annotated[Format, typer.Option("--format", "-f", help="Format of the answer.")]
Output = Annotated[
    Path | None,
    typer.Option("--output", "-o", metavar="FILE", help="Write the answer to a file.", show_default=False),
]
Explain = Annotated[bool, typer.Option("--explain", help="Put the numbers into each formula.")]
Seq = Annotated[int, typer.Option("--seq", metavar="TOKENS", help="Tokens per sequence.", parser=positive_integer)]
SEQ = 4096
"""Default tokens per sequence."""
CacheType = Literal["bf16", "fp16", "fp32", "fp8", "int8", "int4"]
Batch = Annotated[int, typer.Option("--batch", metavar="N", help="Sequences in the batch.", parser=positive_integer)]


def load(text: str, changes: list[str] | None) -> ModelSpec:
    """The spec that `text` names, with `--set` applied."""
    folder = Path(text)
    if not text.strip() or (folder.is_dir() and not (folder / "config.json").is_file()):
        problem = f"no config.json in the folder `{folder}` ({folder.absolute()})" if text.strip() else "MODEL is empty"
        raise UnknownNameError(problem, hint="`llmbench specs list` shows the bundled models")
    spec = find_model(text)
    if changes:
        from llmbench.spec.override import override, parse_assignments

        spec = override(spec, parse_assignments(changes))
    return spec


class AboutModel(msgspec.Struct, kw_only=True):
    """A model that figures are about, and what a reader must know of them.

    `doubts` are reasons why these figures are approximate, beside those of the spec. `tokens` is the sequence length
    that was asked for.
    """

    spec: ModelSpec
    doubts: tuple[str, ...] = ()
    tokens: int = 0

    @property
    def approximate_because(self) -> list[str]:
        """Reasons why figures may be inexact."""
        return [*self.spec.approximate, *self.doubts]

    @property
    def notes(self) -> list[str]:
        """Notes of the spec, and on the length of the sequence."""
        return [*self.spec.notes, *length_notes(self.spec, self.tokens)]

    @property
    def title(self) -> str:
        """The model's name, marked where its figures are approximate."""
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
        "approximate", value=lambda about: bool(about.approximate_because), description="whether figures may be inexact"
    ),
    Field("approximate_because", description="the reasons for that, a list of texts"),
    Field("notes", description="a list of texts: notes of the spec, and on the length of the sequence"),
)
"""The fields that each row about a model begins with."""


def model_block(about: AboutModel, *, table: Table | None, context: str = "", lines: Sequence[str] = ()) -> Block:
    """A table about one model, under its headline and the context of the figures, with its notes below."""
    from llmbench.report.describe import headline  # JSON has no headline

    reasons = [f"approximate: {reason}" for reason in about.approximate_because]
    return Block(
        headline="\n".join(filter(None, [headline(about.spec, approximate=bool(about.doubts)), context])),
        about=record(MODEL_FIELDS, about),
        table=table,
        lines=[*lines, *reasons],
        notes=about.notes,
    )


def approximate_lines(spec: ModelSpec) -> list[str]:
    """Lines that say why figures of this spec may be inexact, and its notes."""
    return [f"approximate: {reason}" for reason in spec.approximate] + [f"note: {note}" for note in spec.notes]


def length_notes(spec: ModelSpec, tokens: int) -> list[str]:
    """Notes on a sequence of so many tokens: learned positions that end before it does."""
    reason = beyond_positions(spec, tokens)
    return [] if reason is None else [reason]


def title(spec: ModelSpec, *, approximate: bool = False) -> str:
    """The name, marked where figures are approximate."""
    return f"{spec.name} (approximate)" if spec.approximate or approximate else spec.name


def working(activity: str) -> AbstractContextManager[object]:
    """Show on stderr what a slow command is doing, if that is a terminal."""
    if not sys.stderr.isatty():
        return nullcontext()
    from rich.console import Console

    return Console(stderr=True).status(f"{activity} …")


def answer(document: Document, format: Format, output: Path | None) -> None:
    """Write a document to stdout or to a file."""
    if output is None:
        render(document, format, sys.stdout)
        return
    try:
        with output.open("w", encoding="utf-8") as stream:
            render(document, format, stream)
    except OSError as problem:
        raise LLMBenchError(f"cannot write {output}: {problem.strerror}") from None
    sys.stderr.write(f"wrote {output}\n")
