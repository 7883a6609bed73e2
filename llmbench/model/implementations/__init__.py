"""The implementations that compute a model. A new implementation gets a line in IMPLEMENTATIONS and in this list.

`impl=` names one Implementation for the whole model. A function of an implementation raises CannotRunError for inputs
that it does not support, such as a soft cap in SDPA. It never switches to another implementation.

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
    """Return the implementation with this name, even if this machine cannot run it.

    Raises UnknownNameError, which suggests the nearest name.
    """
    if name not in IMPLEMENTATIONS:
        raise unknown("implementation", name, IMPLEMENTATIONS)
    implementations: dict[str, Implementation] = import_module(f"{__name__}.{IMPLEMENTATIONS[name]}").IMPLEMENTATIONS
    return implementations[name]


def implementation(name: str) -> Implementation:
    """Return the implementation with this name.

    Raises UnknownNameError, which suggests the nearest name, and CannotRunError if this machine cannot run the
    implementation.
    """
    return refuse_unavailable(described(name))


def refuse_unavailable(implementation: Implementation) -> Implementation:
    """Return `implementation`. Raises CannotRunError if this machine cannot run it."""
    if implementation.unavailable:
        raise CannotRunError(implementation.unavailable, hint="install llmbench[gpu], or use sdpa")
    return implementation
