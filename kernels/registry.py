"""The kernels by name. Files are loaded when they are asked for: importing one costs Triton."""

from __future__ import annotations

from importlib import import_module

from llmbench.errors import unknown
from llmbench.kernels.kernel import Kernel

__all__ = ["KERNELS", "kernel"]

KERNELS = {
    "rms_norm": "norm.rms_norm",
    "layer_norm": "norm.layer_norm",
    "rope": "pointwise.rope",
    "attention": "attention.attention",
    "decode_attention": "decoding.attention",
    "mla_decode": "decoding.latent",
    "glu": "pointwise.glu",
    "moe_routing": "experts.routing",
    "grouped_matmul": "experts.grouped",
    "moe": "experts.mixture",
    "cross_entropy": "loss.cross_entropy",
    "linear_cross_entropy": "loss.linear",
}
"""Every kernel and the module that has it, in the order in which a decoder layer uses them."""


def kernel(name: str) -> Kernel:
    """The kernel of that name. Raises UnknownNameError with the nearest."""
    if name not in KERNELS:
        raise unknown("kernel", name, KERNELS)
    found: Kernel = import_module(f"llmbench.kernels.{KERNELS[name]}").KERNEL
    return found
