"""Formats of stored weights. Each format is one file in `specs/formats/`.

A format says which tensors replace a matrix with `outputs` rows and `inputs` columns. Each of these tensors has one
number per block of the matrix: one per element for the quantised weights, one per group of inputs for scales, one per
output, or one per matrix. A text such as `gptq,bits=8,group=32` names a format and sets its parameters.
"""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import Annotated, Literal, NamedTuple

import msgspec

from llmbench.errors import SpecError, UnknownNameError, similar
from llmbench.spec.base import Name, Part
from llmbench.spec.reading import read_text
from llmbench.spec.weights.gguf import Gguf

FORMATS = Path(__file__).parents[2] / "specs" / "formats"
"""The folder that contains the bundled formats."""

Role = Literal[
    "embedding",
    "head",
    "router",
    "attention",
    "indexer",
    "mlp",
    "experts",
    "shared_experts",
    "shared_gate",
    "mixer",
    "other",
    "outside",
]
"""What a matrix does in a model.

`indexer`: the projections of an indexer or compressor of attention. `shared_gate`: the gate on the output of shared
experts. `mixer`: the projections of a recurrent mixer. `other`: the other matrices of a layer. `outside`: matrices
outside the layers, except the embedding and the head.
"""

Number = Annotated[int, msgspec.Meta(ge=0, le=2**31)]
Value = Number | Name
"""A number, or the name of a parameter of the format."""


class TensorRule(Part, frozen=True):
    """A tensor that belongs to a stored matrix. It has `numbers` numbers per block.

    - name: name of the tensor in the files.
    - bits: bits of one number. "plain": the number format of the tensors that are not quantised.
    - outputs, inputs: size of a block of the matrix. 0: the whole dimension.
    - flat: number of consecutive elements that form a block, instead of outputs and inputs.
    - numbers: numbers per block.
    - when, unless: the tensor exists only if this parameter is not 0, or is 0.
    - loaded_bits: bits of one number in the memory of an engine, if it differs from the files.
    """

    name: Name
    bits: Value
    outputs: Value = 1
    inputs: Value = 1
    flat: Value = 0
    numbers: Number = 1
    when: Name | None = None
    unless: Name | None = None
    loaded_bits: Number | None = None


class FamilyRule(Part, frozen=True):
    """What differs for some families of models (Hugging Face model_type).

    - plain: roles that are not quantised.
    - parameters: parameters of the format for some roles.
    - when: the rule applies only if this parameter of the format is not 0.
    """

    names: tuple[str, ...]
    plain: tuple[Role, ...] = ()
    parameters: dict[Role, dict[str, Number]] = msgspec.field(default_factory=dict)
    when: Name | None = None


class WeightFormat(Part, frozen=True):
    """A format of stored weights.

    - title: description of the format. `{bits}` stands for the parameter bits.
    - source: paper, specification or tool that defines the format.
    - products: number format in which matrix products with these weights run.
    - aliases: other names of the format. similar: other formats that an alias such as `int4` can mean too.
    - plain: number format of all tensors that are not quantised. None: the number format of the checkpoint.
    - roles: matrices that are quantised.
    - parameters: parameters with their default values. A group of 0 is the whole row of a matrix.
    - families: what differs for some families.
    - divides: the parameter that must divide the inputs of a matrix. Other matrices are not quantised.
    - without_next_token_prediction: whether files of this format leave out the multi-token-prediction modules.
    - tensors: the tensors that replace a matrix.
    - gguf: the block types of a GGUF recipe, instead of `roles` and `tensors`.
    """

    title: str
    source: str
    products: Literal["fp32", "bf16", "fp16", "fp8", "int8", "fp4"]
    aliases: tuple[Name, ...] = ()
    similar: tuple[Name, ...] = ()
    plain: Literal["fp32", "bf16", "fp16"] | None = None
    roles: tuple[Role, ...] = ()
    parameters: dict[Name, Number] = msgspec.field(default_factory=dict)
    families: tuple[FamilyRule, ...] = ()
    divides: Name | None = None
    without_next_token_prediction: bool = False
    tensors: tuple[TensorRule, ...] = ()
    gguf: Gguf | None = None


class StoredTensor(NamedTuple):
    """A TensorRule whose parameters have values. bits: None stands for the format of tensors that are not quantised."""

    name: str
    bits: int | None
    outputs: int
    inputs: int
    flat: int
    numbers: int
    loaded_bits: int | None


class Storage(NamedTuple):
    """How one matrix is stored.

    name: name of the format. tensors: the tensors that replace the matrix. divides: the matrix is stored so only if
        this number divides its inputs. 0: any matrix.
    """

    name: str
    tensors: tuple[StoredTensor, ...]
    divides: int


class Chosen(NamedTuple):
    """A format with values of its parameters."""

    name: str
    format: WeightFormat
    parameters: dict[str, int]

    @property
    def text(self) -> str:
        """The name, and the parameters that differ from the defaults: `gptq,bits=8`. `chosen` reads the text."""
        defaults = self.format.parameters
        changed = [f"{key}={value}" for key, value in self.parameters.items() if value != defaults[key]]
        return ",".join([self.name, *changed])

    @property
    def title(self) -> str:
        """A description: `GPTQ, 4 bits, groups of 128`."""
        title = self.format.title.format_map({key: value or "whole" for key, value in self.parameters.items()})
        if "group" not in self.parameters:
            return title
        group = self.parameters["group"]
        return f"{title}, groups of {group}" if group else f"{title}, one group per output"

    def storage(self, role: Role | None = None, family: str = "") -> Storage | None:
        """Return how matrices of a role are stored in models of a family. None: they are not quantised.

        role: None stands for a matrix that a checkpoint explicitly stores in this format.
        """
        parameters = self.parameters
        if role is not None:
            if role not in self.format.roles:
                return None
            for rule in self.format.families:
                if family in rule.names and (rule.when is None or parameters[rule.when]):
                    if role in rule.plain:
                        return None
                    parameters = {**parameters, **rule.parameters.get(role, {})}
        return _storage(self, tuple(parameters.items()))


def _storage(chosen: Chosen, items: tuple[tuple[str, int], ...]) -> Storage | None:
    parameters = dict(items)

    def value(given: int | str) -> int:
        return parameters[given] if isinstance(given, str) else given

    tensors = tuple(
        StoredTensor(
            rule.name,
            None if rule.bits == "plain" else value(rule.bits),
            value(rule.outputs),
            value(rule.inputs),
            value(rule.flat),
            rule.numbers,
            rule.loaded_bits,
        )
        for rule in chosen.format.tensors
        if (rule.when is None or parameters[rule.when]) and (rule.unless is None or not parameters[rule.unless])
    )
    divides = 0 if chosen.format.divides is None else parameters[chosen.format.divides]
    return Storage(chosen.name, tensors, divides) if tensors else None


@lru_cache(maxsize=1)
def format_names() -> tuple[str, ...]:
    """Return the sorted names of the bundled formats."""
    return tuple(sorted(file.stem for file in FORMATS.glob("*.toml")))


@lru_cache(maxsize=64)
def load_format(name: str) -> WeightFormat:
    """Return the bundled format with exactly this name."""
    return msgspec.toml.decode(read_text(FORMATS / f"{name}.toml"), type=WeightFormat)


@lru_cache(maxsize=256)
def chosen(text: str) -> Chosen:
    """Return the format that a text such as `gptq,bits=8,group=32` names. A group of -1 is the whole row of a matrix.

    Raises UnknownNameError for an unknown name, and SpecError for an unknown parameter or a wrong value.
    """
    name, *items = (part.strip() for part in text.split(","))
    known = _named(name)
    weight_format = load_format(known)
    parameters = dict(weight_format.parameters)
    given: set[str] = set()
    for item in items:
        key, _, value = (part.strip() for part in item.partition("="))
        if key not in parameters:
            listed = ", ".join(f"{key}={value}" for key, value in weight_format.parameters.items())
            raise SpecError(
                f"weight format `{known}` has no parameter `{key[:40]}`",
                hint=f"its parameters and their defaults are {listed}" if listed else "it has no parameters",
            )
        if key in given:
            raise SpecError(f"weight format `{known}`: {key} is given twice")
        given.add(key)
        if value == "-1" and key.startswith(("group", "block")):
            value = "0"
        if not value.isascii() or not value.isdigit() or len(value) > 9:
            raise SpecError(
                f"weight format `{known}`: {key} must be a whole number, not `{value[:40]}`",
                hint=f"for example {known},{key}={weight_format.parameters[key]}",
            )
        parameters[key] = int(value)
        least, most = _range(key)
        if not least <= parameters[key] <= most:
            raise SpecError(f"weight format `{known}`: {key} must be from {least} to {most:,}, not {value}")
    return Chosen(known, weight_format, parameters)


def formats_in(text: str) -> list[str]:
    """Return the formats in a text such as `fp8,gptq,bits=8,awq`: `fp8`, `gptq,bits=8` and `awq`.

    An item with `=` is a parameter of the format before it. The path of a .gguf file is one format.
    """
    if text.endswith(".gguf"):
        return [text]
    formats: list[str] = []
    for item in text.split(","):
        if "=" in item and formats:
            formats[-1] += f",{item}"
        else:
            formats.append(item.strip())
    return formats


def alias_note(text: str) -> str:
    """Return a note if a format such as `int4` is an alias that can mean other formats too, else ""."""
    name = text.partition(",")[0].strip().lower()
    known = chosen(text) if name and not text.endswith(".gguf") else None
    if known is None or not known.format.similar or name not in known.format.aliases:
        return ""
    others = ", ".join(known.format.similar)
    return f"`{name}` is read as {known.name} ({known.title}); others are {others}"


_BITS = {
    "q4": ("gguf-q4-k-m", "gguf-q4-0", "nf4"),
    "q8": ("gguf-q8-0", "bnb-int8"),
    "4bit": ("nf4", "awq", "gptq"),
    "4-bit": ("nf4", "awq", "gptq"),
    "int4": ("awq", "gptq", "w4a16"),
    "8bit": ("bnb-int8", "int8", "fp8-block"),
    "8-bit": ("bnb-int8", "int8", "fp8-block"),
}
"""The usual formats of a number of bits, for the hint on a text that names only the number."""


def _range(parameter: str) -> tuple[int, int]:
    """Return the smallest and the largest value of a parameter: bits, the size of a block, or on and off."""
    if parameter.endswith("bits"):
        return 1, 16 if parameter == "bits" else 64
    return 0, 2**20 if parameter.startswith(("group", "block")) else 1


def _named(text: str) -> str:
    wanted = text.lower().replace("_", "-")
    names = format_names()
    for name in (wanted, f"gguf-{wanted}"):
        if name in names:
            return name
    for name in names:
        if wanted in load_format(name).aliases:
            return name
    begin = [name for name in names if name.removeprefix("gguf-").startswith(wanted)] if wanted else []
    nearest = _BITS.get(wanted) or begin[:3] or similar(wanted, names, 3)  # several 4-bit formats are like `fp4`
    near = " or ".join(f"`{name}`" for name in nearest)
    raise UnknownNameError(
        f"weight format `{text[:40]}` is unknown",
        hint=(f"did you mean {near}? " if near else "") + "`llmbench specs list --formats` shows all formats",
    )
