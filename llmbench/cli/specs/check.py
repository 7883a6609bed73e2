"""`llmbench specs check`: the errors of a spec file, and the model that it describes."""

from __future__ import annotations

import os
import shlex
from pathlib import Path
from typing import Annotated

import msgspec
import typer

from llmbench.answers.about import approximate_lines, title
from llmbench.cli.options import As, Output, answer, prints_tables
from llmbench.cli.specs.listing import APPROXIMATE, NAME, Listed
from llmbench.errors import LLMBenchError, SpecError
from llmbench.report.describe import headline
from llmbench.report.document import Block, Document, table
from llmbench.report.fields import Field, record
from llmbench.report.units import change, signed
from llmbench.sizing.params import count_parameters
from llmbench.spec.device import DeviceSpec
from llmbench.spec.files import read_spec, read_toml


def _difference(row: Listed) -> int | None:
    published = row.spec.published_parameters
    return None if published is None else row.parameters.total - published


def _relative(row: Listed) -> str | None:
    """Return the difference from the published number for people: `+439,808 (+0.4%)`."""
    difference, published = _difference(row), row.spec.published_parameters
    if difference is None or published is None:
        return None
    return f"{signed(f'{difference:+,}')} ({change(row.parameters.total, published)})" if difference else "none"


CHECK: tuple[Field[Listed], ...] = (
    Field("file", description="path of the checked file"),
    msgspec.structs.replace(NAME, text=lambda row: title(row.spec)),
    APPROXIMATE,
    Field(
        "parameters",
        "parameters",
        "count",
        lambda row: row.parameters.total,
        description="number of trained parameters",
    ),
    Field(
        "published_parameters",
        "published",
        "count",
        lambda row: row.spec.published_parameters,
        description="number of parameters that the source of the spec publishes, or null",
    ),
    Field("difference", "difference", "count", _difference, _relative, in_json=False),
)


@prints_tables
def check_spec(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="The spec file (.toml) of a model.", show_default=False)],
    format: As = "table",
    output: Output = None,
) -> None:
    """Check a spec file, and show the model that it describes. An error names each wrong field.

    Examples:

      llmbench specs check my-model.toml
    """
    if not os.path.exists(file):
        raise SpecError(f"no file `{file}`", hint="give the path of a spec file, for example my-model.toml")
    if file.suffix == ".json" or os.path.isdir(file):
        raise SpecError(
            f"{file} is not a spec .toml",
            hint=f"`llmbench specs import {shlex.quote(str(file))}` converts a Hugging Face config to a spec",
        )
    try:
        spec = read_spec(file)
    except SpecError:
        if _is_device(file):
            raise SpecError(
                f"{file} describes a device, not a model",
                hint="`specs check` checks only models; `llmbench specs list --devices` shows the built-in devices",
            ) from None
        raise
    row = Listed(spec, count_parameters(spec), str(file))
    document = Document(
        command="specs.check",
        version=2,
        inputs={"file": str(file)},
        rows_key="specs",
        rows=[record(CHECK, row)],
        blocks=[
            Block(
                headline=headline(spec),
                table=table(CHECK, [row]),
                lines=approximate_lines(spec.approximate),
                notes=list(spec.notes),
            )
        ],
    )
    answer(document, format, output)


def _is_device(file: Path) -> bool:
    try:
        msgspec.toml.decode(read_toml(file), type=DeviceSpec)
    except (LLMBenchError, msgspec.DecodeError, ValueError, RecursionError):
        return False
    return True
