"""The base of every spec type, and the bounds of a number in a spec.

The bounds do not come from a model. They stop a typing error (`hidden_size = 4096000000`), and keep products of a few
dimensions within sensible figures.
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
"""Far above any number in a spec or a config; neither infinity nor NaN. Above it, or nearer to zero than its inverse,
products leave the range of fp32."""

Name = Annotated[str, msgspec.Meta(min_length=1, max_length=200)]


class Fault(NamedTuple):
    """A fault of a field; `what` continues a message that starts with the field's name and a colon."""

    field: str
    what: str
    hint: str | None = None


class Part(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """A frozen, keyword-only part of a spec. Unknown fields are refused. Written files leave out defaults."""

    def faults(self) -> Iterator[Fault]:
        """The faults of its own fields, alone or together. llmbench.spec.check has those of all numbers and those
        between parts."""
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
