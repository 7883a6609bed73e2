"""Capture a call as a CUDA graph, and list the kernels that a call launches."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from typing import Any, NamedTuple

import torch
from torch.autograd import DeviceType  # type: ignore[attr-defined]
from torch.profiler import ProfilerActivity, profile

from llmbench.errors import CannotRunError

__all__ = ["KernelTime", "attention_kernels", "captured", "kernel_times", "summed"]

os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # stops the profiler from writing to stderr when it starts


def captured(call: Callable[[], Any], device: torch.device, name: str, *, cuda: Any = torch.cuda) -> Callable[[], Any]:
    """Capture `call` as a CUDA graph and return a function that replays the graph with one launch.

    `call` must have run before. It runs once more before the capture.
    `name`: the name of the call in the error message.
    `cuda`: torch.cuda, or a replacement for it in tests.

    Raises CannotRunError if the call cannot be captured. Most of these calls wait for the GPU, because they copy a
    number between host and GPU. Such a call is detected before the capture starts, because an aborted capture leaves
    torch's allocator in capture mode. In this mode the allocator cannot free memory, and raises an error if it must.
    """
    try:
        _refuse_synchronising(call, cuda)
        graph, pool = cuda.CUDAGraph(), cuda.graph_pool_handle()
        # An aborted capture does not restore the stream that was current before. `cuda.stream` does.
        with (
            cuda.device(device),
            _released(pool, cuda),
            cuda.stream(cuda.current_stream()),
            cuda.graph(graph, pool=pool),
        ):
            call()
    except Exception as problem:  # a call that cannot be captured may raise any error
        cuda.synchronize(device)
        raise CannotRunError(f"cannot capture {name} as a CUDA graph: {str(problem).partition(chr(10))[0]}") from None
    replay: Callable[[], Any] = graph.replay
    return replay


def _refuse_synchronising(call: Callable[[], Any], cuda: Any) -> None:
    """Run `call`. Raises RuntimeError if an op of torch in the call waits for the GPU."""
    before = cuda.get_sync_debug_mode()
    cuda.set_sync_debug_mode("error")
    try:
        call()
    finally:
        cuda.set_sync_debug_mode(before)


@contextmanager
def _released(pool: Any, cuda: Any) -> Iterator[None]:
    """If the block raises an error, end the capture in torch's allocator too."""
    try:
        yield
    except Exception:
        with suppress(RuntimeError):  # raised if the allocator has already ended the capture
            torch._C._cuda_endAllocateToPool(cuda.current_device(), pool)
            torch._C._cuda_releasePool(cuda.current_device(), pool)
        raise


class KernelTime(NamedTuple):
    """The launches of one kernel in a call.

    `name`: the kernel's name in the driver, or on a CPU the name of the torch op. `runs`: the number of launches.
    `total_s`: the seconds of all launches together, measured by the profiler.
    """

    name: str
    runs: int
    total_s: float


def kernel_times(call: Callable[[], Any], device: torch.device) -> list[KernelTime]:
    """Run `call` under torch's profiler and return its kernels. The kernel with the longest total time comes first.

    The profiler makes ops on a CPU noticeably slower. Use these times only for the share of each kernel in the total.
    Use a `Clock` for absolute times.
    """
    # On a GPU only kernels are recorded. A whole model runs so many torch ops that summing their events takes minutes.
    activities = [ProfilerActivity.CUDA if device.type == "cuda" else ProfilerActivity.CPU]
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    # Without acc_events, torch 2.11 warns that the events of earlier profiling cycles are lost. Only one cycle runs
    # here.
    with profile(activities=activities, acc_events=True) as profiler:
        call()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
    return summed(profiler.events() or (), on_gpu=device.type == "cuda")


def summed(events: Iterable[Any], *, on_gpu: bool) -> list[KernelTime]:
    """Sum the times of profiler events with the same name. The name with the longest total time comes first."""
    totals: dict[str, tuple[int, float]] = {}
    for event in events:
        if on_gpu != (event.device_type == DeviceType.CUDA) or getattr(event, "is_user_annotation", False):
            continue  # an event of the other device (CPU or GPU), or an annotation, which is no kernel
        microseconds = event.self_device_time_total if on_gpu else event.self_cpu_time_total
        runs, total = totals.get(event.name, (0, 0.0))
        totals[event.name] = (runs + 1, total + microseconds * 1e-6)
    rows = [KernelTime(name, runs, total) for name, (runs, total) in totals.items()]
    return sorted(rows, key=lambda row: (-row.total_s, row.name))


def attention_kernels(call: Callable[[], Any], device: torch.device) -> tuple[str, ...]:
    """Return the names of the attention kernels that `call` ran: GPU kernels, or torch ops on a CPU.

    The names show which backend scaled_dot_product_attention chose. The result is empty if attention ran as matrix
    products and a softmax.
    """
    # The names of cuDNN's kernels contain "sdpa". The name of torch's memory-efficient kernel contains "fmha". Our
    # decoding kernels, which split the cache, have the last two names.
    marks = ("attention", "fmha", "flash", "sdpa", "decode_split", "mla_split")
    dispatcher = "aten::scaled_dot_product_attention"  # not a kernel: this op only chooses the backend
    names = {row.name for row in kernel_times(call, device) if row.name != dispatcher}
    if device.type == "cpu":  # leave out the autograd nodes, which the profiler lists as well as their ops
        names = {name for name in names if "::" in name and not name.startswith("autograd::")}
    return tuple(sorted(name for name in names if any(mark in name.lower() for mark in marks)))
