"""A new feed-forward, as its author would write it: only what `FFNKind` demands."""

from __future__ import annotations

from typing import final

from llmbench.spec.base import Size
from llmbench.spec.ffn import Activation, FFNKind


@final
class Squeezed(FFNKind, frozen=True, tag="squeezed"):
    """Three matrices: down(up(squeeze(x))). The first matrix narrows x to `rank` channels."""

    rank: Size
    intermediate_size: Size

    bias = False
    experts_summary = None

    @property
    def activation(self) -> Activation:
        return "relu"

    @property
    def summary(self) -> str:
        return f"squeezed {self.rank} → {self.intermediate_size}"
