"""Liger Kernel's Triton kernels with the inputs of ours, where the package liger-kernel (0.8 or later) is installed."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from torch import Tensor

from benchmarks.gpu.calls import Op
from benchmarks.gpu.contenders import Contender
from benchmarks.gpu.machine import Machine
from llmbench.errors import CannotRunError

__all__ = ["add_rms_norm", "geglu", "layer_norm", "linear_cross_entropy", "rms_norm", "rope", "swiglu"]

OLDEST = (0, 8)


def _function(module: str, name: str, machine: Machine) -> Any:
    """An autograd function of Liger. Raises CannotRunError where there is none to run."""
    try:
        found = version("liger-kernel")
    except PackageNotFoundError:
        raise CannotRunError("liger-kernel is not installed") from None
    if tuple(int(part) for part in found.split(".")[:2]) < OLDEST:
        raise CannotRunError(f"liger-kernel {found}: 0.8 or later is needed")
    if machine.device.type != "cuda":
        raise CannotRunError("Liger's kernels need a GPU")
    try:
        return getattr(import_module(f"liger_kernel.ops.{module}"), name).apply
    except (ImportError, AttributeError) as problem:
        raise CannotRunError(f"liger-kernel {found}: {problem}") from None


def _contender(module: str, name: str, op: Callable[..., Any], *, scribbles: bool = False) -> Contender:
    """`op(apply, **inputs)` on the function `name` of `module`."""

    def build(case: Any, machine: Machine) -> Op:
        apply = _function(module, name, machine)
        return lambda **inputs: op(apply, **inputs)

    return Contender(name="liger", build=build, scribbles=scribbles)


def _rms_norm(apply: Any, x: Tensor, weight: Tensor, **_: Any) -> Tensor:
    out: Tensor = apply(x, weight, 1e-6, 0.0, "llama", False)  # not in place: gradients that come in are used again
    return out


def _add_rms_norm(apply: Any, x: Tensor, residual: Tensor, weight: Tensor, **_: Any) -> tuple[Tensor, Tensor]:
    out, summed = apply(x, residual, weight, 1e-6, 0.0, "llama", False)
    return out, summed


def _layer_norm(apply: Any, x: Tensor, weight: Tensor, bias: Tensor, **_: Any) -> Tensor:
    out: Tensor = apply(x, weight, bias, 1e-5)
    return out


def _rope(apply: Any, q: Tensor, k: Tensor, cos: Tensor, sin: Tensor, **_: Any) -> tuple[Tensor, Tensor]:
    """Liger has the heads before the tokens, and turns in place."""
    q, k = apply(q.transpose(1, 2), k.transpose(1, 2), cos, sin, None, 1, 2 * cos.shape[-1])
    return q.transpose(1, 2), k.transpose(1, 2)


def _glu(apply: Any, gate: Tensor, up: Tensor, **_: Any) -> Tensor:
    out: Tensor = apply(gate, up)
    return out


def _linear_cross_entropy(apply: Any, x: Tensor, weight: Tensor, targets: Tensor, **_: Any) -> Tensor:
    loss: Tensor = apply(x, weight, targets)[0]
    return loss


rms_norm = _contender("rms_norm", "LigerRMSNormFunction", _rms_norm)
add_rms_norm = _contender("fused_add_rms_norm", "LigerFusedAddRMSNormFunction", _add_rms_norm)
layer_norm = _contender("layer_norm", "LigerLayerNormFunction", _layer_norm)
rope = _contender("rope", "LigerRopeFunction", _rope, scribbles=True)
swiglu = _contender("swiglu", "LigerSiLUMulFunction", _glu, scribbles=True)  # gradients go where gate and up were
geglu = _contender("geglu", "LigerGELUMulFunction", _glu, scribbles=True)
linear_cross_entropy = _contender(
    "fused_linear_cross_entropy", "LigerFusedLinearCrossEntropyFunction", _linear_cross_entropy
)
