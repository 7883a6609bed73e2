"""A new position encoding that acts on scores, as its author would write it: only what `PositionKind` demands."""

from __future__ import annotations

from typing import final

from llmbench.spec.base import Size
from llmbench.spec.position import PositionKind


@final
class SpanBias(PositionKind, frozen=True, tag="span_bias"):
    """A trained bias per head on the scores of the nearest `near` keys."""

    near: Size

    acts_on = "scores"
    position_limit = None

    @property
    def summary(self) -> str:
        return f"span bias ({self.near})"
