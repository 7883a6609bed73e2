"""Weight names of Upstage's Solar."""

from __future__ import annotations

from llmbench.spec.weights.families import table
from llmbench.spec.weights.families.common import (
    ATTENTION,
    CORRECTION,
    EXPERTS,
    GATED,
    PRE_NORMS,
    QK_NORM,
    SHARED_EXPERTS,
    TOP,
)

table(
    "solar_open",
    top=TOP,
    layers=ATTENTION + QK_NORM + EXPERTS + CORRECTION + SHARED_EXPERTS + GATED + PRE_NORMS,
    partial_rotation=True,
)
