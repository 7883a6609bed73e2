"""A new position encoding that is added to the embedding, as its author would write it: only what `PositionKind`
demands."""

from __future__ import annotations

from typing import final

from llmbench.spec.base import Size
from llmbench.spec.position import PositionKind


@final
class Tone(PositionKind, frozen=True, tag="tone"):
    """A trained vector that is multiplied with a wave over `period` positions, for at most `longest` positions."""

    period: Size
    longest: Size

    acts_on = "embedding"
    summary = "tone"

    @property
    def position_limit(self) -> int:
        return self.longest
