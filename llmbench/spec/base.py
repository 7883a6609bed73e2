"""The base classes of all spec types, and the allowed range of numbers in a spec.

The range does not come from a model. It catches typing errors such as `hidden_size = 4096000000`. It also prevents an
overflow when a few dimensions are multiplied.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Annotated, NamedTuple

import msgspec

from llmbench.printable import UNSAFE

Size = Annotated[int, msgspec.Meta(ge=1, le=2**31)]
"""A dimension or a number of things, from 1 to 2³¹."""

Count = Annotated[int, msgspec.Meta(ge=0, le=2**31)]
"""A dimension or a number of things, from 0 to 2³¹. Zero means that the model has no such part."""

LARGEST = 1e30
"""The largest absolute value that a number in a spec or a config may have. Numbers in real models are far smaller.

A product of larger numbers can overflow fp32. A product of numbers below 1 / LARGEST can underflow.
"""

Name = Annotated[str, msgspec.Meta(min_length=1, max_length=200, pattern=f"^[^{UNSAFE}]+$")]


class Fault(NamedTuple):
    """A field with a wrong value. The error message is `field: what`.

    - field: name or path of the field.
    - what: description of the problem, with the value.
    - hint: what the user can do.
    """

    field: str
    what: str
    hint: str | None = None


class Part(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """The base class of all parts of a spec.

    A part is a frozen struct with named fields. An unknown field raises an error. `write_spec` leaves out the
    fields that have their default value.
    """

    def faults(self) -> Iterator[Fault]:
        """Yield the faults of this part's own fields: impossible values, and values that contradict each other.

        llmbench.spec.check finds two other sorts of faults: numbers out of range, and contradictions between parts.
        """
        return iter(())


class Kind(Part, frozen=True, tag_field="kind", tag=str.lower):
    """The base class of parts that exist in several kinds (a tagged union). `kind = "..."` selects the kind in a spec
    file.

    A concrete kind is marked `@final`, so that mypy reports each abstract property that the kind does not define.
    """

    @property
    def kind(self) -> str:
        """The name of this kind in a spec file."""
        return str(self.__struct_config__.tag)


def plural(number: int, noun: str) -> str:
    """Return a number with its noun: `1 layer`, `2 layers`, `4,096 tokens`."""
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"


def word_list(texts: Sequence[str]) -> str:
    """Return texts as a list in words: `a`, `a and b`, `a, b and c`. There is at least one text."""
    *others, last = texts
    return f"{', '.join(others)} and {last}" if others else last
