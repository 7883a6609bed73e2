"""What several commands share: options, reading models, writing the answer."""

from __future__ import annotations

import sys
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Annotated, Literal

import typer

from llmbench.errors import LLMBenchError, UnknownNameError
from llmbench.report.document import Document
from llmbench.report.render import Format, render
from llmbench.sizing.lengths import beyond_positions
from llmbench.spec.catalog import find_model
from llmbench.spec.model import ModelSpec

MODEL_HELP = "A bundled name, a spec .toml, a config.json or its folder, or hf:organisation/name."

Models = Annotated[list[str], typer.Argument(metavar="MODEL...", help=MODEL_HELP, show_default=False)]
OneModel = Annotated[str, typer.Argument(metavar="MODEL", help=MODEL_HELP, show_default=False)]
Set = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="KEY=VALUE",
        help="Change a field of the spec, as in num_key_value_heads=8.",
        show_default=False,
    ),
]
As = Annotated[Format, typer.Option("--format", "-f", help="How to write the answer.")]
Output = Annotated[
    Path | None,
    typer.Option("--output", "-o", metavar="FILE", help="Write to a file instead.", show_default=False),
]
Explain = Annotated[bool, typer.Option("--explain", help="Show each formula with the numbers put in.")]
Seq = Annotated[int, typer.Option("--seq", metavar="TOKENS", help="Tokens of a sequence.", min=1, max=2**31)]
SEQ = 4096
"""Tokens of a sequence where nobody says how many."""
CacheType = Literal["bf16", "fp16", "fp32", "fp8", "int8", "int4"]
Batch = Annotated[int, typer.Option("--batch", metavar="N", help="Sequences at once.", min=1, max=2**31)]


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


def approximate_lines(spec: ModelSpec) -> list[str]:
    """Why figures of this spec may be inexact, and what else there is to say of it."""
    return [f"approximate: {reason}" for reason in spec.approximate] + [f"note: {note}" for note in spec.notes]


def length_notes(spec: ModelSpec, tokens: int) -> list[str]:
    """What there is to say of a sequence of so many tokens."""
    reason = beyond_positions(spec, tokens)
    return [] if reason is None else [reason]


def title(spec: ModelSpec, *, approximate: bool = False) -> str:
    """The name, marked where figures are approximate."""
    return f"{spec.name} (approximate)" if spec.approximate or approximate else spec.name


def working(what: str) -> AbstractContextManager[object]:
    """Says what takes so long, where stderr is a terminal."""
    if not sys.stderr.isatty():
        return nullcontext()
    from rich.console import Console

    return Console(stderr=True).status(f"{what} …")


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
