"""Whether a device has enough memory for a model, and whether it can compute in the model's number format."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import islice
from typing import NamedTuple, get_args

import msgspec

from llmbench.errors import LayoutError
from llmbench.sizing.dtypes import DType
from llmbench.sizing.memory import Memory, ServingRun
from llmbench.sizing.training import run_memory
from llmbench.sizing.training_step import TrainingRun
from llmbench.sizing.workload import Layout, Recompute
from llmbench.spec.catalog import DeviceHead, device_heads

Run = TrainingRun | ServingRun

HEADROOM = 0.10
"""The share of a device's memory that must stay free.

The prediction does not count rounding and fragmentation of the allocator, communication buffers, and the scratch memory
of some kernels. The memory that nine of twelve published torchtitan runs reserve is predicted within 10%
(`benchmarks/published/training_runs.csv`). vLLM leaves nearly the same share free by default: 10% up to version 0.19,
and 8% from 0.21 on (`gpu_memory_utilization`).
"""


class DeviceFit(NamedTuple):
    """The answer for one device.

    needed_bytes: bytes that the model needs, the CUDA context included. memory_bytes: memory of the device.
    missing_format: the number format of the matrix products, if the matrix units of the device lack it.
    memory_from: where `memory_bytes` comes from: `that the driver reports`.
    """

    device: str
    needed_bytes: int
    memory_bytes: int
    missing_format: DType | None
    memory_from: str = ""

    @property
    def filled(self) -> float:
        """The share of the device's memory that the model needs. It is above 1 if the memory is too small."""
        return self.needed_bytes / self.memory_bytes

    @property
    def usable_bytes(self) -> int:
        """Bytes of the device's memory without the headroom."""
        return round((1 - HEADROOM) * self.memory_bytes)

    @property
    def exceeds_bytes(self) -> int:
        """Bytes by which the model is larger than the usable memory. 0: the model is not larger."""
        return max(0, self.needed_bytes - self.usable_bytes)

    @property
    def fits(self) -> bool:
        """Whether the device can run the model: it computes the format, and the headroom stays free."""
        return self.missing_format is None and not self.exceeds_bytes


def device_fit(device: DeviceHead, needed_bytes: int, products: DType) -> DeviceFit:
    """Return the answer for one device. `products`: number format of the matrix products."""
    lacks = products != "fp32" and products not in device.matrix_formats
    return DeviceFit(device.name, needed_bytes, device.memory_bytes, products if lacks else None, device.memory_from)


def torch_devices() -> tuple[DeviceHead, ...]:
    """Return the bundled devices of NVIDIA and AMD, with the smallest memory first.

    The memory of a step is that of PyTorch with CUDA or ROCm. Other devices share their memory with the CPU, or run
    other frameworks.
    """
    return tuple(device for device in device_heads() if device.vendor in ("nvidia", "amd"))


def fitting_devices(needed_bytes: int, products: DType) -> list[DeviceFit]:
    """Return the devices of `torch_devices` that can run the model. The device that it fills most comes first."""
    fits = (device_fit(device, needed_bytes, products) for device in torch_devices())
    return [fit for fit in fits if fit.fits]


def memory_of(run: Run) -> Memory:
    """Return the memory of the GPU with the highest peak."""
    return run_memory(run) if isinstance(run, TrainingRun) else run.memory()


SPLITS = {
    "train": ("dp=2,zero=3", "dp=4,zero=3", "dp=8,zero=3", "dp=16,zero=3", "dp=32,zero=3", "dp=64,zero=3"),
    "inference": ("tp=2", "tp=4", "tp=8", "tp=16"),
}
"""The layouts that `split_until_it_fits` tries: FSDP in training, tensor parallelism in serving."""


def split_until_it_fits(run: Run, memory: Memory, device: DeviceHead, products: DType) -> tuple[Layout, Memory] | None:
    """Return the first layout of SPLITS with which the devices can run the model, and the memory of one device.

    None: the run has a layout already, no layout of SPLITS suffices, or the device lacks the format of the products.
    memory: the memory of the run.
    """
    if memory.layout.num_gpus > 1:
        return None
    for text in SPLITS[memory.phase]:
        layout = Layout.parse(text)
        try:
            split = memory_of(run.with_layout(layout))
        except LayoutError:
            continue
        if device_fit(device, split.needed_bytes, products).fits:
            return layout, split
    return None


class Change(NamedTuple):
    """A change of a training run. option: the options with their new values. memory: the memory of one GPU with it."""

    option: str
    memory: Memory


def changes_that_fit(run: Run, device: DeviceHead, products: DType) -> list[Change]:
    """Return the changes with which a training step on several GPUs fits on these devices, without more GPUs.

    A change is sequence parallelism, a higher stage of ZeRO, or more recomputation: of each the smallest one that
    suffices. If none suffices alone, the only change is all of them together. Empty: the run has one GPU, or serves,
    or nothing suffices, or the device lacks the format of the products.
    """
    if not isinstance(run, TrainingRun) or run.layout.num_gpus == 1:
        return []
    layout, order = run.layout, get_args(Recompute)
    sequence = [_layout_with(layout, sp=True)] if layout.tp > 1 and not layout.sp else []
    stages = range(layout.zero + 1, 4)
    sharded = [_layout_with(layout, zero=zero) for zero in stages]
    again = [msgspec.structs.replace(run, recompute=recompute) for recompute in order[order.index(run.recompute) + 1 :]]

    def first(runs: Iterable[TrainingRun]) -> list[Change]:
        changes = (Change(_options(run, other), memory_of(other)) for other in runs)
        found = (change for change in changes if device_fit(device, change.memory.needed_bytes, products).fits)
        return list(islice(found, 1))

    def divided(layouts: Iterable[Layout | None]) -> Iterator[TrainingRun]:
        return (run.with_layout(other) for other in layouts if other is not None)

    alone = [*first(divided(sequence)), *first(divided(sharded)), *first(again)]
    if alone:
        return alone
    sp = layout.tp > 1
    together = divided(_layout_with(layout, sp=sp, zero=zero) for zero in (layout.zero, *stages))
    return first(msgspec.structs.replace(other, recompute="full") for other in together)


def _layout_with(layout: Layout, *, sp: bool | None = None, zero: int | None = None) -> Layout | None:
    """Return a layout with sequence parallelism or another stage of ZeRO, or None if they contradict the rest."""
    try:
        return msgspec.structs.replace(
            layout, sp=layout.sp if sp is None else sp, zero=layout.zero if zero is None else zero
        )
    except LayoutError:
        return None


def _options(run: TrainingRun, other: TrainingRun) -> str:
    """Return the options whose values differ between two runs."""
    options = [f"--layout {other.layout}"] if other.layout != run.layout else []
    options += [f"--recompute {other.recompute}"] if other.recompute != run.recompute else []
    return " ".join(options)
