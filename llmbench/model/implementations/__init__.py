"""The implementations of a model, and the one place where another plugs in.

`impl=` names one Implementation for a whole model. Each of its functions refuses with CannotRunError what it does not
support (a soft cap in SDPA, a GPU kernel on a CPU); it never falls back to another implementation silently.

    standard                       plain torch; attention materialises its scores
    sdpa, sdpa-flash, -cudnn, …    torch's scaled_dot_product_attention: any backend, or one of them
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
"""Every name that `impl=` takes, and the module in this folder that defines it. A module is loaded on request."""


def described(name: str) -> Implementation:
    """The implementation of that name, also where it cannot run here. Raises UnknownNameError with the nearest name."""
    if name not in IMPLEMENTATIONS:
        raise unknown("implementation", name, IMPLEMENTATIONS)
    found: dict[str, Implementation] = import_module(f"{__name__}.{IMPLEMENTATIONS[name]}").IMPLEMENTATIONS
    return found[name]


def implementation(name: str) -> Implementation:
    """The implementation of that name. Raises UnknownNameError with the nearest name, CannotRunError where it cannot
    run here."""
    return refuse_unavailable(described(name))


def refuse_unavailable(implementation: Implementation) -> Implementation:
    """The same implementation. Raises CannotRunError where it cannot run here."""
    if implementation.unavailable:
        raise CannotRunError(implementation.unavailable, hint="install llmbench[gpu], or use sdpa")
    return implementation
