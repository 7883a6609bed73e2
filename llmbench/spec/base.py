"""The base of every spec type, and the bounds of a number in a spec.

The bounds do not come from a model. They catch typing errors (`hidden_size = 4096000000`) and keep the product of a few
dimensions in a sensible range.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, NamedTuple

import msgspec

Size = Annotated[int, msgspec.Meta(ge=1, le=2**31)]
"""A dimension or a count of at least one."""

Count = Annotated[int, msgspec.Meta(ge=0, le=2**31)]
"""A dimension or a count that may be zero (absent)."""

LARGEST = 1e30
"""The largest absolute value of a number in a spec or a config. No real model comes near it. Products of larger
numbers, or of numbers below its inverse, leave the range of fp32."""

Name = Annotated[str, msgspec.Meta(min_length=1, max_length=200)]


class Fault(NamedTuple):
    """A fault of a field. The error message is `field: what`."""

    field: str
    what: str
    hint: str | None = None


class Part(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """A part of a spec: a frozen struct whose fields are given by name. Unknown fields are refused. A written file
    leaves out fields that have their default."""

    def faults(self) -> Iterator[Fault]:
        """Yield the faults of this part's fields: impossible values, and values that contradict each other.

        llmbench.spec.check finds the other faults: numbers out of range, and contradictions between parts.
        """
        return iter(())


class Kind(Part, frozen=True, tag_field="kind", tag=str.lower):
    """A part that has several kinds (a tagged union). In a spec file, `kind = "..."` chooses the kind.

    A concrete kind is `@final`, so that mypy reports each abstract property that the kind does not define.
    """

    @property
    def kind(self) -> str:
        """The name of the kind in a spec file."""
        return str(self.__struct_config__.tag)


def plural(number: int, noun: str) -> str:
    """A number with its noun: `1 layer`, `2 layers`, `4,096 tokens`."""
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"
