"""The implementations that compute a model. A new implementation is added here.

`impl=` names one Implementation for the whole model. A function of an implementation raises CannotRunError for inputs
that it does not support (a soft cap in SDPA, a CPU for a GPU kernel). It never switches to another implementation.

    standard                       plain torch; attention materialises its scores
    sdpa                           torch's scaled_dot_product_attention; torch chooses the backend
    sdpa-flash, -cudnn, -efficient torch's scaled_dot_product_attention with one fixed backend
    flex                           torch's FlexAttention
    flash                          our Triton kernels for attention; everything else is plain torch
    fused                          our Triton kernels for attention, norms, rotation, gates, experts and the loss
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

from llmbench.errors import CannotRunError, unknown

if TYPE_CHECKING:
    from llmbench.model.implementations.interface import Implementation

__all__ = ["IMPLEMENTATIONS", "described", "implementation", "refuse_unavailable"]

IMPLEMENTATIONS: dict[str, str] = {
    "standard": "plain",
    "sdpa": "sdpa",
    "sdpa-flash": "sdpa",
    "sdpa-cudnn": "sdpa",
    "sdpa-efficient": "sdpa",
    "flex": "flex",
    "flash": "kernels",
    "fused": "kernels",
}
"""The names that `impl=` accepts, each with the module in this folder that defines it. A module is imported on first
use."""


def described(name: str) -> Implementation:
    """The implementation with this name, even if it cannot run here. Raises UnknownNameError with the nearest name."""
    if name not in IMPLEMENTATIONS:
        raise unknown("implementation", name, IMPLEMENTATIONS)
    found: dict[str, Implementation] = import_module(f"{__name__}.{IMPLEMENTATIONS[name]}").IMPLEMENTATIONS
    return found[name]


def implementation(name: str) -> Implementation:
    """The implementation with this name. Raises UnknownNameError with the nearest name, and CannotRunError if the
    implementation cannot run here."""
    return refuse_unavailable(described(name))


def refuse_unavailable(implementation: Implementation) -> Implementation:
    """Return `implementation`. Raises CannotRunError if it cannot run here."""
    if implementation.unavailable:
        raise CannotRunError(implementation.unavailable, hint="install llmbench[gpu], or use sdpa")
    return implementation
