"""What each answer says about its model: the name, the reasons why figures are approximate, and the notes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, TypeVar

import msgspec

from llmbench.report.document import Block, Table
from llmbench.report.fields import Field, record
from llmbench.report.units import Unit, plural
from llmbench.sizing.lengths import beyond_positions
from llmbench.spec.model import ModelSpec

if TYPE_CHECKING:
    from llmbench.sizing.weight_recipe import WeightRecipe

Item = TypeVar("Item")


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
        """Notes on the length of the sequences, if `tokens` says it, and the notes of the spec."""
        return [*length_notes(self.spec, self.tokens), *encoder_notes(self.spec, self.tokens), *self.spec.notes]

    @property
    def title(self) -> str:
        """The name of the model, with "(approximate)" if the figures of the model may be inexact."""
        return title(self.spec, approximate=bool(self.doubts))


WEIGHTS_FROM = (
    "where the bytes of the weights come from: `--weights`, `the files` (their headers), `the index of the files`, "
    "`quantization_config`, `hf_quant_config.json`, `the config`, `the spec`, or `assumed` if the spec does not say it"
)
"""The description of a field with `WeightRecipe.origin`."""

MODEL_FIELDS: tuple[Field[AboutModel], ...] = (
    Field(
        "model",
        "model",
        value=lambda about: about.spec.name,
        text=lambda about: about.title,
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
        description="list of notes: the notes of the spec, a note if the sequence is too long for the model, a note on "
        "the input of an encoder, and notes on the names of devices",
    ),
)
"""The first fields of each row about a model."""


def sweep_fields(
    fields: Sequence[Field[Item]], items: Sequence[Item], headings: Mapping[str, str]
) -> tuple[Field[Item], ...]:
    """Return the fields of the table of a sweep. A field in `headings` becomes a column if the items differ in it.

    A field with numbers gets the unit "count". The columns repeat if the table is shown in parts.
    """

    def column(field: Field[Item]) -> Field[Item]:
        values = {field.value_of(item) for item in items} if field.name in headings else set()
        if len(values) < 2:
            return field
        unit: Unit = "count" if all(isinstance(value, int) for value in values) else "text"
        return msgspec.structs.replace(field, heading=headings[field.name], unit=unit, repeats=True)

    return tuple(map(column, fields))


def comparison_headline(specs: Sequence[ModelSpec], context: str) -> str:
    """Return the headline of a table with several rows: the description of the model if all rows have the same model,
    then the context of the figures."""
    from llmbench.report.describe import headline

    return f"{headline(specs[0])}\n{context}" if all(spec == specs[0] for spec in specs) else context


def model_block(about: AboutModel, *, table: Table | None, context: str = "", lines: Sequence[str] = ()) -> Block:
    """Return a block about one model: a headline, the context of the figures, a table, lines, and the model's notes."""
    from llmbench.report.describe import headline  # imported here, because JSON has no headline

    return Block(
        headline="\n".join(filter(None, [headline(about.spec, approximate=bool(about.doubts)), context])),
        about=record(MODEL_FIELDS, about),
        table=table,
        lines=[*lines, *approximate_lines(about.approximate_because)],
        notes=about.notes,
    )


def approximate_lines(reasons: Sequence[str]) -> list[str]:
    """Return a line for each reason why figures may be inexact."""
    return [f"approximate: {reason}" for reason in reasons]


def length_notes(spec: ModelSpec, tokens: int) -> list[str]:
    """Return a list with a note if a sequence of `tokens` tokens is too long for the model, else an empty list."""
    reason = beyond_positions(spec, tokens)
    if reason is not None:
        return [reason]
    context = spec.max_position_embeddings
    if context is None or tokens <= context:
        return []
    return [f"a sequence of more than {plural(context, 'token')} exceeds the context length of {spec.name}"]


def encoder_notes(spec: ModelSpec, tokens: int) -> list[str]:
    """Return a list with a note on the input of an encoder if a command computes with `tokens` tokens, else none."""
    if spec.encoder is None or not tokens:
        return []
    read = f"{plural(spec.encoder.length, 'token')}" if spec.encoder.length else "as many tokens as the decoder"
    return [f"the encoder of {spec.name} reads {read}; figures per token are those per token of the decoder"]


def title(spec: ModelSpec, *, approximate: bool = False) -> str:
    """Return the name of the model, with "(approximate)" if the figures of the model may be inexact."""
    return f"{spec.name} (approximate)" if spec.approximate or approximate else spec.name


def weights_line(recipe: WeightRecipe) -> str:
    """Return the format of stored weights and where it comes from: `MXFP4 experts, groups of 32 (from the spec)`."""
    origin = {"--weights": "--weights", "assumed": "assumed"}.get(recipe.origin, f"from {recipe.origin}")
    return f"{recipe.title} ({origin})"
