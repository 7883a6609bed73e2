"""`llmbench specs`: the catalogue, and bringing models into it."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from llmbench.cli.options import As, Output, Set, answer, approximate_lines, load, title
from llmbench.errors import LLMBenchError, SpecError
from llmbench.report.describe import headline
from llmbench.report.document import Block, Column, Document, Table
from llmbench.report.units import billions
from llmbench.sizing.params import count_parameters
from llmbench.spec.catalog import (
    bundled_devices,
    bundled_models,
    device_text,
    find_device,
    load_bundled,
    load_device,
)
from llmbench.spec.files import read_spec, write_spec

command = typer.Typer(no_args_is_help=True, help="List, show, import and check model specs.", rich_markup_mode=None)


@command.command("list")
def list_specs(
    devices: Annotated[bool, typer.Option("--devices", help="The bundled devices instead of models.")] = False,
    model_types: Annotated[
        bool, typer.Option("--model-types", help="The Hugging Face model types that are read exactly.")
    ] = False,
    format: As = "table",
    output: Output = None,
) -> None:
    """The bundled models (or devices) in one line each.

    Examples:

      llmbench specs list

      llmbench specs list --devices

      llmbench specs list --format json
    """
    if model_types:
        from llmbench.spec.huggingface import supported_model_types

        rows: list[dict[str, Any]] = [{"model_type": name} for name in supported_model_types()]
        table = Table(columns=[Column("model type")], rows=[[row["model_type"]] for row in rows])
    elif devices:
        rows, table = _devices()
    else:
        rows, table = _models()
    document = Document(command="specs.list", inputs={}, rows_key="specs", rows=rows, blocks=[Block(table=table)])
    answer(document, format, output)


def _models() -> tuple[list[dict[str, Any]], Table]:
    rows: list[dict[str, Any]] = []
    for name in bundled_models():
        spec = load_bundled(name)
        counted = count_parameters(spec)
        rows.append(
            {
                "name": name,
                "approximate": bool(spec.approximate),
                "aliases": list(spec.aliases),
                "family": spec.family,
                "parameters": counted.total,
                "active_parameters": counted.active,
                "layers": spec.num_hidden_layers,
                "hidden_size": spec.hidden_size,
                "source": spec.source,
            }
        )
    columns = [
        Column("name", name=True),
        Column("parameters", "count"),
        Column("active", "count"),
        Column("layers", "count"),
        Column("hidden", "count"),
        Column("family"),
        Column("source", wraps=True),
    ]
    cells = [
        [
            row["name"],
            billions(row["parameters"]),
            billions(row["active_parameters"]),
            row["layers"],
            row["hidden_size"],
            row["family"] or None,
            row["source"],
        ]
        for row in rows
    ]
    return rows, Table(columns=columns, rows=cells)


def _devices() -> tuple[list[dict[str, Any]], Table]:
    rows: list[dict[str, Any]] = []
    for name in bundled_devices():
        device = load_device(name)
        bandwidth = device.memory_bandwidth_bytes_per_s
        memory = device.memory_bytes
        rows.append(
            {
                "name": name,
                "aliases": list(device.aliases),
                "architecture": device.architecture,
                "memory_bytes": memory.value if memory else None,
                "memory_bandwidth_bytes_per_s": bandwidth.value if bandwidth else None,
                "dense_flops_per_s": {key: figure.value for key, figure in device.dense_flops_per_s.items()},
            }
        )

    columns = [
        Column("name", name=True),
        Column("architecture"),
        Column("memory", "gib"),
        Column("bandwidth", "gb_per_s"),
        Column("bf16", "tflops_per_s"),
        Column("fp8", "tflops_per_s"),
        Column("fp32", "tflops_per_s"),
    ]
    cells = [
        [
            row["name"],
            row["architecture"],
            row["memory_bytes"],
            row["memory_bandwidth_bytes_per_s"],
            *(row["dense_flops_per_s"].get(dtype) for dtype in ("bf16", "fp8", "fp32")),
        ]
        for row in rows
    ]
    return rows, Table(columns=columns, rows=cells)


@command.command("show")
def show(
    name: Annotated[
        str,
        typer.Argument(metavar="NAME", help="A model as for other commands, or a bundled device.", show_default=False),
    ],
    set: Set = None,
    output: Output = None,
) -> None:
    """A spec as TOML, every field with its value; of a device, its datasheet with sources.

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
        except LLMBenchError:
            raise problem from None
        text = device_text(device.name)
    _write(text, output)


@command.command("import")
def import_config(
    config: Annotated[
        str,
        typer.Argument(
            metavar="CONFIG", help="A config.json, its folder, or hf:organisation/name.", show_default=False
        ),
    ],
    output: Output = None,
) -> None:
    """A Hugging Face config as a spec file; what could not be read exactly is said and stays marked in the spec.

    Examples:

      llmbench specs import path/to/config.json -o my-model.toml

      llmbench specs import hf:mistralai/Mistral-7B-v0.1
    """
    spec = load(config, None)
    for line in approximate_lines(spec):
        sys.stderr.write(line + "\n")
    _write(write_spec(spec), output)


@command.command("check")
def check(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="A spec .toml.", show_default=False)],
    format: As = "table",
    output: Output = None,
) -> None:
    """Read a spec file strictly and say what it describes.

    Examples:

      llmbench specs check my-model.toml
    """
    if not file.exists():
        raise SpecError(f"no file `{file}`")
    if file.suffix == ".json" or file.is_dir():
        raise SpecError(
            f"{file} is not a spec .toml",
            hint=f"`llmbench specs import {shlex.quote(str(file))}` makes a spec of a Hugging Face config",
        )
    try:
        spec = read_spec(file)
    except SpecError:
        if _is_device(file):
            raise SpecError(
                f"{file} describes a device, not a model",
                hint="`llmbench specs list --devices` shows the bundled ones; only models are checked",
            ) from None
        raise
    counted = count_parameters(spec)
    row = {
        "file": str(file),
        "name": spec.name,
        "approximate": bool(spec.approximate),
        "parameters": counted.total,
        "published_parameters": spec.published_parameters,
    }
    published = spec.published_parameters
    difference = None if published is None else counted.total - published
    columns = [
        Column("sound", name=True),
        Column("parameters", "count"),
        Column("published", "count"),
        Column("difference", "count"),
    ]
    table = Table(columns=columns, rows=[[title(spec), counted.total, published, difference]])
    document = Document(
        command="specs.check",
        inputs={"file": str(file)},
        rows_key="specs",
        rows=[row],
        blocks=[Block(headline=headline(spec), table=table, lines=approximate_lines(spec))],
    )
    answer(document, format, output)


def _is_device(file: Path) -> bool:
    import msgspec

    from llmbench.spec.device import DeviceSpec

    try:
        msgspec.toml.decode(file.read_bytes(), type=DeviceSpec)
    except (msgspec.DecodeError, OSError, ValueError, RecursionError):
        return False
    return True


def _write(text: str, output: Path | None) -> None:
    if output is None:
        sys.stdout.write(text)
        return
    try:
        output.write_text(text, encoding="utf-8")
    except OSError as problem:
        raise LLMBenchError(f"cannot write {output}: {problem.strerror}") from None
    sys.stderr.write(f"wrote {output}\n")
