"""The candidate `rope-fused`: the implementation `flash` with the rotation of `fused`."""

from __future__ import annotations

from llmbench.model.implementations import described
from llmbench.model.implementations.interface import Implementation

__all__ = ["build"]


def build() -> Implementation:
    """Return `flash` with the rotation of `fused`, which rotates queries and keys in one launch."""
    fused = described("fused")
    return described("flash")._replace(name="rope-fused", rotate=fused.rotate, unavailable=fused.unavailable)
