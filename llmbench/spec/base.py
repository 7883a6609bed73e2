"""The base of every spec type, and the bounds that a number in a spec must keep.

The bounds are not about any one model: they stop a typing error (`hidden_size = 4096000000`) and keep every
product of a few dimensions an honest figure instead of an absurd one.
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
"""Far beyond any number in a spec or a config; neither infinity nor NaN. Beyond it, and nearer to zero than its
inverse, products leave what fp32 holds."""

Name = Annotated[str, msgspec.Meta(min_length=1, max_length=200)]


class Fault(NamedTuple):
    """What is wrong with a field, as it reads behind the field's name and a colon."""

    field: str
    what: str
    hint: str | None = None


class Part(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """A frozen, keyword-only piece of a spec; unknown fields are refused, defaults are left out when written."""

    def faults(self) -> Iterator[Fault]:
        """What its own fields cannot be, alone or beside each other. What every number must be, and what parts must be
        beside other parts, is in llmbench.spec.check."""
        return iter(())


class Kind(Part, frozen=True, tag_field="kind", tag=str.lower):
    """A part that comes in kinds: `kind = "..."` says which (a tagged union).

    A concrete kind is `@final`, so that mypy names each abstract property that it does not define.
    """

    @property
    def kind(self) -> str:
        """The kind, as a spec file writes it."""
        return str(self.__struct_config__.tag)


def plural(number: int, noun: str) -> str:
    """1 layer, 2 layers, 4,096 tokens."""
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"
