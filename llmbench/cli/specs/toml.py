"""`llmbench specs show` and `llmbench specs import`: specs as TOML."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import msgspec
import typer

from llmbench.answers.about import approximate_lines
from llmbench.cli.messages import say
from llmbench.cli.options import MODEL_HELP, Output, Set, load
from llmbench.cli.written import write_file
from llmbench.errors import LLMBenchError
from llmbench.spec.catalog import device_text, devices_named, find_device
from llmbench.spec.files import write_spec


def show_spec(
    name: Annotated[
        str,
        typer.Argument(
            metavar="NAME", help=f"{MODEL_HELP} Or a device from `llmbench specs list --devices`.", show_default=False
        ),
    ],
    set: Set = None,
    output: Output = None,
) -> None:
    """Show the spec of a model as TOML with all fields, or the datasheet of a device with the source of each figure.

    Examples:

      llmbench specs show mixtral-8x7b

      llmbench specs show h100-sxm

      llmbench specs show llama2-7b --set num_hidden_layers=16 -o small.toml
    """
    try:
        text = write_spec(load(name, set))
    except LLMBenchError as problem:
        try:
            device = find_device(name)
        except LLMBenchError as other:
            raise (other if devices_named(name) else problem) from None
        text = device_text(device.name)
    _write(text, output)


def import_config(
    config: Annotated[
        str,
        typer.Argument(
            metavar="CONFIG",
            help="A Hugging Face config.json, the folder that contains it, or hf:organisation/name.",
            show_default=False,
        ),
    ],
    output: Output = None,
) -> None:
    """Convert a Hugging Face config to a spec file.

    The spec lists every part of the config that llmbench could not interpret exactly, and the command also prints this
    list to stderr. With --output, the spec gets the name of the file.

    Examples:

      llmbench specs import path/to/config.json -o my-model.toml

      llmbench specs import hf:mistralai/Mistral-7B-v0.1
    """
    spec = load(config, None)
    for line in (*approximate_lines(spec.approximate), *(f"note: {note}" for note in spec.notes)):
        say(line)
    spec = msgspec.structs.replace(
        spec,
        name=spec.name if output is None else output.stem,
        source=config if config.startswith("hf:") else "",
    )
    _write(write_spec(spec), output)


def _write(text: str, output: Path | None) -> None:
    """Write a spec to the file `output`, or to stdout. Raises LLMBenchError if the name says another format."""
    if output is not None and output.suffix in (".json", ".csv", ".md"):
        raise LLMBenchError(
            f"--output {output}: a spec is written as TOML", hint=f"use --output {output.with_suffix('.toml')}"
        )
    if output is None:
        sys.stdout.write(text)
        return
    write_file(output, lambda stream: stream.write(text), replaces=False)
