"""What really ran: the GPU kernels of a call by torch's profiler, and on a CPU the ops that reach torch's kernels."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import torch
from torch.autograd import DeviceType  # type: ignore[attr-defined]
from torch.profiler import ProfilerActivity, profile

__all__ = ["Launched", "attention_kernels", "launches"]

os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # at its own level the profiler writes to stderr when it starts


class Launched(NamedTuple):
    """A kernel by its name in the driver (on a CPU: an op by its name in torch), how often a call ran it, and the
    seconds that it took all together, under the profiler."""

    name: str
    runs: int
    total_s: float


def launches(call: Callable[[], Any], device: torch.device) -> list[Launched]:
    """Run `call` under the profiler; what took longest comes first. The profiler slows a CPU's ops noticeably: shares
    of its times mean something, the times themselves are the clock's to tell."""
    # On a GPU kernels alone: of a whole model's ops there are so many more that they would take minutes to sum up.
    activities = [ProfilerActivity.CUDA if device.type == "cuda" else ProfilerActivity.CPU]
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    # acc_events: there is one cycle; torch 2.11 warns that it would forget others
    with profile(activities=activities, acc_events=True) as profiler:
        call()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
    return summed(profiler.events() or (), on_gpu=device.type == "cuda")


def summed(events: Iterable[Any], *, on_gpu: bool) -> list[Launched]:
    """Profiler events by name."""
    found: dict[str, tuple[int, float]] = {}
    for event in events:
        if on_gpu != (event.device_type == DeviceType.CUDA) or getattr(event, "is_user_annotation", False):
            continue  # annotations are shown on the GPU's line too, and are no kernels
        taken = event.self_device_time_total if on_gpu else event.self_cpu_time_total
        runs, total = found.get(event.name, (0, 0.0))
        found[event.name] = (runs + 1, total + taken * 1e-6)
    rows = [Launched(name, runs, total) for name, (runs, total) in found.items()]
    return sorted(rows, key=lambda row: (-row.total_s, row.name))


def attention_kernels(call: Callable[[], Any], device: torch.device) -> tuple[str, ...]:
    """The backend that scaled_dot_product_attention really chose for this call: on a GPU the kernels' names, on a CPU
    torch's attention ops. Empty where plain products and a softmax ran."""
    # cuDNN says sdpa, torch's memory-efficient kernel fmha, ours on a cache split
    marks = ("attention", "fmha", "flash", "sdpa", "decode_split", "mla_split")
    dispatched = "aten::scaled_dot_product_attention"  # what chooses, not what is chosen
    names = {row.name for row in launches(call, device) if row.name != dispatched}
    if device.type == "cpu":  # beside ops stand the nodes of autograd that ran them
        names = {name for name in names if "::" in name and not name.startswith("autograd::")}
    return tuple(sorted(name for name in names if any(mark in name.lower() for mark in marks)))
