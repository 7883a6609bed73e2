"""The kernels by name. Files are loaded when they are asked for: importing one costs Triton."""

from __future__ import annotations

from importlib import import_module

from llmbench.errors import unknown
from llmbench.kernels.kernel import Kernel

__all__ = ["NAMES", "kernel"]

NAMES = (
    "rms_norm",
    "layer_norm",
    "rope",
    "attention",
    "decode_attention",
    "mla_decode",
    "glu",
    "moe_routing",
    "grouped_matmul",
    "moe",
    "cross_entropy",
    "linear_cross_entropy",
)
"""Every kernel file, in the order in which a decoder layer meets them."""


def kernel(name: str) -> Kernel:
    """The kernel of that name. Raises UnknownNameError with the nearest."""
    if name not in NAMES:
        raise unknown("kernel", name, NAMES)
    found: Kernel = import_module(f"llmbench.kernels.{name}").KERNEL
    return found
