"""`llmbench specs list`: the built-in models and devices, and the formats of weights."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from typing import Annotated, NamedTuple

import typer

from llmbench.cli.options import As, Output, answer, prints_tables
from llmbench.errors import LLMBenchError
from llmbench.report.document import listing
from llmbench.report.fields import Field, fitted
from llmbench.report.units import UNKNOWN
from llmbench.sizing.params import Parameters, count_parameters
from llmbench.sizing.weights import bits_per_element, bits_per_weight
from llmbench.spec.catalog import bundled_devices, bundled_models, load_bundled, load_device
from llmbench.spec.device import DeviceSpec, DType, Figure
from llmbench.spec.mixer import branches
from llmbench.spec.model import ModelSpec
from llmbench.spec.schema import tag_of
from llmbench.spec.weights.formats import Chosen, chosen, format_names


class Listed(NamedTuple):
    """A spec and its numbers of parameters. `file`: path of the spec, which only `specs check` sets."""

    spec: ModelSpec
    parameters: Parameters
    file: str = ""


NAME: Field[Listed] = Field("model", "model", value=lambda row: row.spec.name, description="name of the spec")
APPROXIMATE: Field[Listed] = Field(
    "approximate", value=lambda row: bool(row.spec.approximate), description="whether the figures may be inexact"
)
MODELS: tuple[Field[Listed], ...] = (
    NAME,
    APPROXIMATE,
    Field("aliases", value=lambda row: list(row.spec.aliases), description="other names of the model"),
    Field(
        "parameters",
        "parameters",
        "parameters",
        value=lambda row: row.parameters.total,
        description="number of trained parameters",
    ),
    Field(
        "active_parameters",
        "active parameters",
        "parameters",
        value=lambda row: row.parameters.active,
        description="number of trained parameters that one token uses",
    ),
    Field("layers", "layers", "count", value=lambda row: row.spec.num_hidden_layers, description="number of layers"),
    Field(
        "hidden_size",
        "hidden size",
        "count",
        spare=1,
        value=lambda row: row.spec.hidden_size,
        description="width of the hidden states",
    ),
    Field(
        "family",
        "family",
        value=lambda row: row.spec.family,
        text=lambda row: row.spec.family or UNKNOWN,
        description="`model_type` of the model's Hugging Face config; empty if the model has no such config",
    ),
    Field(
        "source",
        value=lambda row: row.spec.source,
        description="publication or file from which the spec was written",
    ),
)


def _value(figure: Figure | None) -> int | float | None:
    """Return the value of a figure in a datasheet. None if the datasheet does not state the figure."""
    return None if figure is None else figure.value


def _peak(dtype: DType) -> Field[DeviceSpec]:
    return Field(
        f"dense_flops_per_s.{dtype}",
        f"{dtype} peak",
        "tflops_per_s",
        value=lambda device: _value(device.dense_flops_per_s.get(dtype)),
        in_json=False,
    )


DEVICES: tuple[Field[DeviceSpec], ...] = (
    Field("name", "device", description="name of the device"),
    Field("aliases", value=lambda device: list(device.aliases), description="other names of the device"),
    Field("architecture", "architecture", spare=1, description="architecture of the GPU"),
    Field(
        "memory_bytes",
        "memory",
        "gib",
        value=lambda device: _value(device.memory_bytes),
        description="memory that the datasheet states",
    ),
    Field(
        "memory_bandwidth_bytes_per_s",
        "bandwidth",
        "gb_per_s",
        value=lambda device: _value(device.memory_bandwidth_bytes_per_s),
        description="memory bandwidth that the datasheet states",
    ),
    Field(
        "dense_flops_per_s",
        value=lambda device: {dtype: peak.value for dtype, peak in device.dense_flops_per_s.items()},
        description="peak FLOP/s for each number format, without sparsity",
    ),
    _peak("bf16"),
    _peak("fp8"),
    _peak("fp32"),
)
MODEL_TYPES: tuple[Field[str], ...] = (
    Field(
        "model_type",
        "model type",
        value=str,
        description="a `model_type` of Hugging Face configs that `specs import` supports",
    ),
)
MIXTURE = "mixtral-8x7b"
"""The model whose bits per weight `specs list --formats` shows. It has attention, experts, and two large tables."""

FORMATS: tuple[Field[Chosen], ...] = (
    Field("format", "format", value=lambda row: row.name, description="name of the format, for `--weights`"),
    Field("aliases", value=lambda row: list(row.format.aliases), description="other names of the format"),
    Field("title", "description", value=lambda row: row.title, wraps=True, description="description of the format"),
    Field(
        "parameters",
        "parameters",
        value=lambda row: dict(row.parameters),
        text=lambda row: ", ".join(f"{name}={value}" for name, value in row.parameters.items()) or "none",
        wraps=True,
        spare=1,
        description="parameters with their default values; `--weights gptq,bits=8` changes one. A group of 0 is the "
        "whole row of a matrix",
    ),
    Field(
        "bits_per_element",
        value=bits_per_element,
        description="stored bits per element of a quantised matrix with 4,096 inputs and outputs, scales included; "
        "those of the base type if the format mixes types",
    ),
    Field(
        "bits_per_weight",
        f"bits per weight of {MIXTURE}",
        "number",
        value=lambda row: bits_per_weight(load_bundled(MIXTURE), row.name),
        description=f"stored bits of all tensors of {MIXTURE}, divided by its parameters",
    ),
    Field(
        "products", "computes in", value=lambda row: row.format.products, description="number format of the products"
    ),
    Field("source", value=lambda row: row.format.source, description="publication or tool that defines the format"),
)


@prints_tables
def list_specs(
    devices: Annotated[bool, typer.Option("--devices", help="List the devices (GPUs) instead of the models.")] = False,
    model_types: Annotated[
        bool,
        typer.Option(
            "--model-types",
            help="List the model types of Hugging Face configs that `specs import` supports. "
            "llmbench refuses all other types.",
        ),
    ] = False,
    formats: Annotated[bool, typer.Option("--formats", help="List the formats of stored weights.")] = False,
    family: Annotated[
        str,
        typer.Option(
            "--family",
            metavar="NAME",
            help="List only models whose family begins with NAME. The family is the `model_type` of the Hugging Face "
            "config: `--family qwen3` lists qwen3, qwen3_moe, qwen3_next and others.",
            show_default=False,
        ),
    ] = "",
    filter: Annotated[
        str,
        typer.Option(
            "--filter",
            metavar="TEXT",
            help="List only models, devices or model types with TEXT in their name, another name, their family or "
            "architecture, or the kinds of their layers: mla, moe, window, mamba.",
            show_default=False,
        ),
    ] = "",
    format: As = "table",
    output: Output = None,
) -> None:
    """List the built-in models, devices or formats of weights, one per line. `specs show` shows the source of each
    figure.

    Examples:

      llmbench specs list

      llmbench specs list --family deepseek

      llmbench specs list --filter coder

      llmbench specs list --filter mla

      llmbench specs list --devices --filter h100

      llmbench specs list --formats

      llmbench specs list --format json
    """
    options = {"--devices": devices, "--model-types": model_types, "--formats": formats}
    lists = [option for option, asked in options.items() if asked]
    if len(lists) > 1:
        raise typer.BadParameter(f"{' and '.join(lists)} exclude each other")
    if family and lists:
        raise typer.BadParameter(f"--family is for models: leave out {lists[0]}, or use --filter")
    inputs = {
        "devices": devices,
        "model_types": model_types,
        "formats": formats,
        "family": family,
        "filter": filter,
    }
    if formats:
        kinds = [chosen(name) for name in format_names()]
        kinds = [kind for kind in kinds if _matches(filter, kind.name, *kind.format.aliases, kind.format.title)]
        document = listing("specs.list", "specs", FORMATS, kinds, inputs=inputs, version=2)
    elif model_types:
        from llmbench.spec.huggingface import supported_model_types

        types = [name for name in supported_model_types() if _matches(filter, name)]
        document = listing("specs.list", "specs", MODEL_TYPES, types, inputs=inputs, version=2)
    elif devices:
        gpus = [load_device(name) for name in bundled_devices()]
        gpus = [gpu for gpu in gpus if _matches(filter, gpu.name, *gpu.aliases, gpu.architecture)]
        document = listing("specs.list", "specs", fitted(DEVICES, gpus), gpus, inputs=inputs, version=2)
    else:
        specs = [load_bundled(name) for name in bundled_models()]
        models = [
            Listed(spec, count_parameters(spec))
            for spec in specs
            if spec.family.lower().startswith(family.lower())
            and _matches(filter, spec.name, *spec.aliases, spec.family, *_parts(spec))
        ]
        document = listing("specs.list", "specs", MODELS, models, inputs=inputs, version=2)
    if not document.rows:
        given = {"--family": family, "--filter": filter}
        filters = " ".join(f"{option} {shlex.quote(text)}" for option, text in given.items() if text)
        raise LLMBenchError(
            f"nothing in the list matches {filters}", hint="`llmbench specs list` shows every model and its family"
        )
    answer(document, format, output)


def _parts(spec: ModelSpec) -> Iterator[str]:
    """Yield the kinds of the parts of the layers and their short descriptions: `mla`, `128 heads (MLA)`, `window`."""
    for layer in spec.layers.values():
        for part in (*branches(layer.mixer), layer.ffn):
            if part is not None:
                yield from (tag_of(type(part)) or "", part.summary)
    if any(mixer.sliding_window for mixer in spec.attentions):
        yield "window"


def _matches(text: str, *names: str) -> bool:
    """Return whether one of the names contains the text. Upper and lower case do not differ."""
    return any(text.lower() in name.lower() for name in names)
