"""The kernels by name. A kernel's file is imported only on request, because the import loads Triton."""

from __future__ import annotations

import ast
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING

from llmbench.errors import unknown

if TYPE_CHECKING:
    from llmbench.kernels.kernel import Kernel

__all__ = ["KERNELS", "load_kernel", "read_summary"]

KERNELS = {
    "rms_norm": "norm.norm:RMS_NORM",
    "layer_norm": "norm.norm:LAYER_NORM",
    "rope": "pointwise.rope:KERNEL",
    "attention": "attention.attention:KERNEL",
    "decode_attention": "decoding.attention:KERNEL",
    "mla_decode": "decoding.latent:KERNEL",
    "glu": "pointwise.glu:KERNEL",
    "moe_routing": "experts.routing:KERNEL",
    "grouped_matmul": "experts.grouped:KERNEL",
    "moe": "experts.mixture:KERNEL",
    "cross_entropy": "loss.cross_entropy:KERNEL",
    "linear_cross_entropy": "loss.linear:KERNEL",
}
"""The module in `llmbench.kernels` and the name of the `Kernel` in it, for each kernel, in the order of a decoder
layer."""


def load_kernel(name: str) -> Kernel:
    """Import and return the kernel of that name. Raises UnknownNameError, which suggests the nearest name."""
    if name not in KERNELS:
        raise unknown("kernel", name, KERNELS)
    module, _, attribute = KERNELS[name].partition(":")
    kernel: Kernel = getattr(import_module(f"llmbench.kernels.{module}"), attribute)
    return kernel


def read_summary(name: str) -> str:
    """Return the summary of a kernel. It is read from the text of the kernel's file, so it needs neither torch nor
    Triton."""
    module, _, attribute = KERNELS[name].partition(":")
    file = Path(__file__).parent / f"{module.replace('.', '/')}.py"
    for node in ast.parse(file.read_text(encoding="utf-8")).body:
        if not isinstance(node, ast.Assign) or not isinstance(node.value, ast.Call):
            continue
        if [ast.unparse(target) for target in node.targets] == [attribute]:
            texts = {keyword.arg: keyword.value for keyword in node.value.keywords}
            return str(ast.literal_eval(texts["summary"]))
    raise AssertionError(f"{file} has no summary of {attribute}")
