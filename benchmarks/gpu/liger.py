"""Candidates that run Liger Kernel's Triton kernels on the inputs of our kernels. They need liger-kernel 0.8 or
later."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from torch import Tensor

from benchmarks.gpu.calls import Op
from benchmarks.gpu.candidates import CandidateKernel
from benchmarks.gpu.machine import Machine
from llmbench.errors import CannotRunError

__all__ = ["add_rms_norm", "geglu", "layer_norm", "linear_cross_entropy", "rms_norm", "rope", "swiglu"]

OLDEST = (0, 8)


def _function(module: str, name: str, machine: Machine) -> Any:
    """Return the `apply` function of one of Liger's autograd functions. Raises CannotRunError if it cannot run on this
    machine."""
    try:
        installed = version("liger-kernel")
    except PackageNotFoundError:
        raise CannotRunError("liger-kernel is not installed") from None
    if tuple(int(part) for part in installed.split(".")[:2]) < OLDEST:
        raise CannotRunError(f"liger-kernel {installed} is too old: the benchmark needs 0.8 or later")
    if machine.device.type != "cuda":
        raise CannotRunError("Liger's kernels need a GPU")
    try:
        return getattr(import_module(f"liger_kernel.ops.{module}"), name).apply
    except (ImportError, AttributeError) as problem:
        raise CannotRunError(f"liger-kernel {installed}: {problem}") from None


def _candidate(module: str, name: str, op: Callable[..., Any], *, overwrites_inputs: bool = False) -> CandidateKernel:
    """Return the candidate that runs `op(apply, **inputs)`. `apply` belongs to the autograd function `name` in Liger's
    module `module`."""

    def build(case: Any, machine: Machine) -> Op:
        apply = _function(module, name, machine)
        return lambda **inputs: op(apply, **inputs)

    return CandidateKernel(name="liger", build=build, overwrites_inputs=overwrites_inputs)


def _rms_norm(apply: Any, x: Tensor, weight: Tensor, **_: Any) -> Tensor:
    # The last argument, False, forbids the backward pass to overwrite the incoming gradients. The next call uses them
    # again.
    out: Tensor = apply(x, weight, 1e-6, 0.0, "llama", False)
    return out


def _add_rms_norm(apply: Any, x: Tensor, residual: Tensor, weight: Tensor, **_: Any) -> tuple[Tensor, Tensor]:
    out, summed = apply(x, residual, weight, 1e-6, 0.0, "llama", False)
    return out, summed


def _layer_norm(apply: Any, x: Tensor, weight: Tensor, bias: Tensor, **_: Any) -> Tensor:
    out: Tensor = apply(x, weight, bias, 1e-5)
    return out


def _rope(apply: Any, q: Tensor, k: Tensor, cos: Tensor, sin: Tensor, **_: Any) -> tuple[Tensor, Tensor]:
    """Rotate queries and keys with Liger's kernel. The kernel expects the heads before the tokens and rotates in
    place."""
    q, k = apply(q.transpose(1, 2), k.transpose(1, 2), cos, sin, None, 1, 2 * cos.shape[-1])
    return q.transpose(1, 2), k.transpose(1, 2)


def _glu(apply: Any, gate: Tensor, up: Tensor, **_: Any) -> Tensor:
    out: Tensor = apply(gate, up)
    return out


def _linear_cross_entropy(apply: Any, x: Tensor, weight: Tensor, targets: Tensor, **_: Any) -> Tensor:
    loss: Tensor = apply(x, weight, targets)[0]
    return loss


rms_norm = _candidate("rms_norm", "LigerRMSNormFunction", _rms_norm)
add_rms_norm = _candidate("fused_add_rms_norm", "LigerFusedAddRMSNormFunction", _add_rms_norm)
layer_norm = _candidate("layer_norm", "LigerLayerNormFunction", _layer_norm)
rope = _candidate("rope", "LigerRopeFunction", _rope, overwrites_inputs=True)
# The backward passes of SwiGLU and GEGLU overwrite `gate` and `up` with the gradients.
swiglu = _candidate("swiglu", "LigerSiLUMulFunction", _glu, overwrites_inputs=True)
geglu = _candidate("geglu", "LigerGELUMulFunction", _glu, overwrites_inputs=True)
linear_cross_entropy = _candidate(
    "fused_linear_cross_entropy", "LigerFusedLinearCrossEntropyFunction", _linear_cross_entropy
)
