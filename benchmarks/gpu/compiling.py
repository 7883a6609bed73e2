"""Compile Triton kernels in parallel before anything is timed, without using the GPU.

The launches of a pass are recorded on shapes alone (`launching.captured`), and Triton compiles each of them for the
architecture of the GPU. Triton keeps the compiled code in its cache on disk. A process that later launches the kernel
finds the code there, because the launch goes through the same function of Triton with arguments of the same types.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import torch
import triton
from torch import Tensor
from triton.backends.compiler import GPUTarget

from benchmarks.gpu.children import Reporter
from llmbench.kernels.kernel import Kernel, Random
from llmbench.kernels.launching import Capture, Launch, captured, preferring
from llmbench.sizing.work import Pass

__all__ = ["compilers", "recorded"]


class Shadow:
    """A tensor without memory: the type and the alignment, which decide how Triton compiles a kernel."""

    def __init__(self, tensor: Tensor) -> None:
        self.dtype, self.address = tensor.dtype, tensor.data_ptr() % 16
        self.shape, self.strides = tuple(tensor.shape), tensor.stride()

    def data_ptr(self) -> int:
        """Return an address with the alignment of the tensor."""
        return self.address

    def stride(self) -> tuple[int, ...]:
        """Return the strides of the tensor."""
        return self.strides


def recorded(
    kernel: Kernel, case: Any, direction: Pass, dtype: torch.dtype, arch: int, preferred: dict[str, int] | None = None
) -> Capture:
    """Record the launches of one pass of a kernel on tensors without values. The launches of a backward pass include
    those of its forward pass. `preferred`: the number of the configuration to choose, by name."""
    inputs = kernel.inputs(case, Random(0, dtype, torch.device("cpu"), shapes_only=True))
    leaves = []
    if direction != "forward":
        values = (inputs.get(name) for name in kernel.differentiable)
        leaves = [value.requires_grad_() for value in values if isinstance(value, Tensor)]
    with captured(arch) as capture, preferring(preferred or {}), torch.set_grad_enabled(bool(leaves)):
        out = kernel.run(**inputs)
        if leaves:
            outs = [part for part in (out if isinstance(out, tuple) else (out,)) if part.requires_grad]
            torch.autograd.grad(outs, leaves, [torch.empty_like(part) for part in outs], allow_unused=True)
    # The tensors are dropped, because their memory is reserved although it is never written. A process with too much
    # reserved memory cannot fork.
    capture.launches[:] = [
        replace(launch, arguments={name: _shadow(value) for name, value in launch.arguments.items()})
        for launch in capture.launches
    ]
    return capture


def _shadow(value: Any) -> Any:
    if isinstance(value, Tensor):
        return Shadow(value)
    if isinstance(getattr(value, "base", None), Tensor):  # a TensorDescriptor
        return replace(value, base=Shadow(value.base))
    return value


def compilers(launches: Iterable[Launch], arch: int, processes: int) -> list[Callable[[Reporter], None]]:
    """Return the work of `processes` child processes that together compile every launch once."""
    unique = list({_identity(launch): launch for launch in launches}.values())
    shares = [unique[number::processes] for number in range(min(processes, len(unique)))]
    return [lambda reporter, share=share: _compile(share, arch) for share in shares]  # type: ignore[misc]


def _compile(launches: Iterable[Launch], arch: int) -> None:
    """Compile launches. An error is only printed, because it occurs again when the kernel is launched."""
    target = GPUTarget("cuda", arch, 32)
    # Triton asks its driver for the target and the stream. The real driver would create a CUDA context.
    driver: Any = SimpleNamespace(
        get_current_target=lambda: target, get_current_device=lambda: 0, get_current_stream=lambda device: 0
    )
    triton.runtime.driver.set_active(driver)
    for launch in launches:
        try:
            launch.kernel.warmup(
                **launch.arguments,
                grid=(1,),
                num_warps=launch.config.num_warps,
                num_stages=launch.config.num_stages,
                enable_fp_fusion=True,
            )
        except Exception as problem:
            print(f"{launch.name} {launch.config}: {type(problem).__name__}: {problem}")


def _identity(launch: Launch) -> tuple[Any, ...]:
    """Return a key that is equal for launches with the same compiled code. A few launches with equal code may have
    different keys; the second one is then found in the cache."""
    return launch.name, str(launch.config), tuple(_words(launch.arguments))


def _words(arguments: dict[str, Any]) -> Iterator[tuple[str, str]]:
    for name, value in arguments.items():
        if isinstance(value, Shadow):
            yield name, f"{value.dtype} {value.address}"
        elif isinstance(value, int) and not isinstance(value, bool) and value > 1:
            yield name, f"{value}" if name.isupper() else f"{value % 16 == 0} {value >= 2**31}"
        else:
            yield name, repr(value) if not hasattr(value, "base") else f"descriptor {value.base.dtype}"
