"""The ways to compute a model, and the one place where others plug in.

`impl=` names one Implementation for a whole model. Each function takes exactly what it can compute; what it cannot (a
soft cap in SDPA, a GPU kernel on a CPU) is refused with CannotRunError, never computed another way in silence.

    standard                       plain torch; scores are held
    sdpa, sdpa-flash, -cudnn, …    torch's scaled_dot_product_attention, free in its choice or held to one backend
    flex                           torch's FlexAttention
    flash                          our Triton kernels for attention; the rest is plain torch
    fused                          our Triton kernels for attention, norms, rotation, gates, experts and the loss
"""

from __future__ import annotations

from importlib import import_module

from llmbench.errors import CannotRunError, unknown
from llmbench.model.implementations.interface import Implementation

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
"""Every name that `impl=` takes, and the module here that has it. A module is loaded when it is asked for."""


def implementation(name: str) -> Implementation:
    """The implementation of that name. Raises UnknownNameError with the nearest, CannotRunError where it needs Triton
    and there is none."""
    if name not in IMPLEMENTATIONS:
        raise unknown("implementation", name, IMPLEMENTATIONS)
    found: dict[str, Implementation] = import_module(f"{__name__}.{IMPLEMENTATIONS[name]}").IMPLEMENTATIONS
    if name not in found:
        raise CannotRunError(f"impl {name} needs Triton", hint="install llmbench[gpu], or use flash or sdpa")
    return found[name]
