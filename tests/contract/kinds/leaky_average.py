"""A new recurrent kind, as its author would write it: only what `RecurrentKind` demands."""

from __future__ import annotations

from typing import final

from llmbench.spec.base import Size
from llmbench.spec.mixer.cache_row import FixedState
from llmbench.spec.mixer.kind import RecurrentKind


@final
class LeakyAverage(RecurrentKind, frozen=True, tag="leaky_average"):
    """An average per channel with a trained decay, between two projections."""

    width: Size

    label = "leaky average"
    module_name = "average"

    @property
    def fixed_state(self) -> FixedState:
        return FixedState(scan=(self.width,))
