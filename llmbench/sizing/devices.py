"""Whether a device has enough memory for a model, and whether it can compute in the model's number format."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice
from typing import NamedTuple, get_args

import msgspec

from llmbench.errors import LayoutError
from llmbench.sizing.dtypes import DType
from llmbench.sizing.memory import Memory, ServingRun
from llmbench.sizing.training import run_memory
from llmbench.sizing.training_run import TrainingRun
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


class Change(NamedTuple):
    """A change of a run. option: the options with their new values. memory: the memory of one GPU with it."""

    option: str
    memory: Memory


def split_until_it_fits(
    run: Run, memory: Memory, device: DeviceHead, products: DType, *, recompute: bool
) -> Change | None:
    """Return the first layout of SPLITS with which the devices can run the model. memory: the memory of the run.

    recompute: whether full recomputation is tried too, if no layout suffices for a training step. None: the run has a
        layout already, nothing suffices, or the device lacks the format of the products.
    """
    if memory.layout.num_gpus > 1:
        return None
    runs = [run]
    if recompute and isinstance(run, TrainingRun) and run.recompute != "full" and not run.recipe.recompute:
        runs.append(msgspec.structs.replace(run, recompute="full"))
    for each in runs:
        for text in SPLITS[memory.phase]:
            try:
                other = each.with_layout(Layout.parse(text))
            except LayoutError:
                continue
            split = memory_of(other)
            if device_fit(device, split.needed_bytes, products).fits:
                return Change(_options(run, other), split)
    return None


MOST_SEQUENCES = 4096
"""Smaller micro-batches are tried below this number of sequences."""
MOST_TP = 8
"""Tensor parallelism is tried up to this size, because it needs the links inside a machine of eight GPUs."""


def changes_that_fit(run: Run, device: DeviceHead, products: DType) -> list[Change]:
    """Return the changes with which a run fits on these devices, without more GPUs.

    In training, a change is sequence parallelism, a higher stage of ZeRO, more recomputation, or smaller micro-batches
    with as many sequences per step: of each the smallest one that suffices. If none suffices alone, the only change is
    several of them together, or else tensor parallelism in place of a part of data parallelism. In serving, the change
    is the largest batch that fits. Empty: nothing suffices, or the device lacks the format of the products.
    """

    def fits(other: Run) -> Change | None:
        memory = memory_of(other)
        suffices = device_fit(device, memory.needed_bytes, products).fits
        return Change(_options(run, other), memory) if suffices else None

    if device_fit(device, 0, products).missing_format is not None:
        return []
    if isinstance(run, ServingRun):
        return _smaller(run, fits)

    def first(runs: Iterable[TrainingRun]) -> list[Change]:
        return list(islice(filter(None, map(fits, runs)), 1))

    def divided(layouts: Iterable[Layout | None]) -> Iterator[TrainingRun]:
        return (run.with_layout(other) for other in layouts if other is not None)

    layout, order = run.layout, get_args(Recompute)
    sequence = [_layout_with(layout, sp=True)] if layout.tp > 1 and not layout.sp else []
    stages = range(layout.zero + 1, 4)
    sharded = [_layout_with(layout, zero=zero) for zero in stages]
    # Parts that the recipe computes again contradict all but selective recomputation.
    known = order[: order.index("selective") + 1] if run.recipe.recompute else order
    again = [msgspec.structs.replace(run, recompute=other) for other in known[order.index(run.recompute) + 1 :]]
    alone = [*first(divided(sequence)), *first(divided(sharded)), *first(again), *_smaller(run, fits)]
    if alone:
        return alone
    most = again[-1] if again else run
    layouts = (_layout_with(layout, sp=layout.tp > 1, zero=zero) for zero in (layout.zero, *stages))
    together = [most.with_layout(other) for other in layouts if other is not None]
    return (
        first(together)
        or _smaller(most, fits)
        or [change for run in together[-1:] for change in _smaller(run, fits)]
        or first(_with_more_tp(run))
        or first(other for each in together[-1:] for other in _with_more_tp(each))
    )


def _with_more_tp(run: TrainingRun) -> Iterator[TrainingRun]:
    """Yield the run with a part of its data parallelism turned into tensor parallelism, on as many GPUs.

    A step keeps its number of sequences, so each replica has more micro-batches.
    """
    layout = run.layout
    if run.recipe.step == "backward":  # it cannot accumulate gradients
        return
    for factor in (2, 4, 8):
        if layout.tp * factor > MOST_TP or layout.dp % factor:
            return
        try:
            split = msgspec.structs.replace(layout, tp=layout.tp * factor, dp=layout.dp // factor, sp=True)
            other = run.with_layout(split)
        except LayoutError:
            return
        yield other.with_micro_batch(run.workload.batch, run.passes * factor)


def _smaller(run: Run, fits: Callable[[Run], Change | None]) -> list[Change]:
    """Return the change to the largest batch that fits, or an empty list. The given batch does not fit.

    In training, a step keeps its number of sequences, so smaller micro-batches are more.
    """
    if isinstance(run, ServingRun):
        return _largest(range(1, run.batch), lambda sequences: fits(msgspec.structs.replace(run, batch=sequences)))
    if run.recipe.step == "backward":  # it cannot accumulate gradients
        return []
    total = run.workload.batch * run.passes
    divisors = [count for count in range(1, min(run.workload.batch, MOST_SEQUENCES)) if total % count == 0]
    return _largest(divisors, lambda sequences: fits(run.with_micro_batch(sequences, total // sequences)))


def _largest(batches: Sequence[int], fits: Callable[[int], Change | None]) -> list[Change]:
    """Return the change to the largest of these rising batches that fits. A larger batch needs more memory."""
    low, high = 0, len(batches)  # the first `low` batches fit, and those from `high` on do not
    found: list[Change] = []
    while low < high:
        middle = (low + high) // 2
        change = fits(batches[middle])
        if change is None:
            high = middle
        else:
            low, found = middle + 1, [change]
    return found


def _layout_with(layout: Layout, *, sp: bool | None = None, zero: int | None = None) -> Layout | None:
    """Return a layout with sequence parallelism or another stage of ZeRO, or None if they contradict the rest."""
    try:
        return msgspec.structs.replace(
            layout, sp=layout.sp if sp is None else sp, zero=layout.zero if zero is None else zero
        )
    except LayoutError:
        return None


def _options(run: Run, other: Run) -> str:
    """Return the options whose values differ between two runs of the same phase."""
    options = [f"--layout {other.layout}"] if other.layout != run.layout else []
    if isinstance(run, ServingRun) or isinstance(other, ServingRun):
        assert isinstance(run, ServingRun)
        assert isinstance(other, ServingRun)
        options += [f"--batch {other.batch}"] if other.batch != run.batch else []
        return " ".join(options)
    options += [f"--batch {other.workload.batch}"] if other.workload.batch != run.workload.batch else []
    options += [f"--micro-batches {other.passes}"] if other.passes != run.passes else []
    options += [f"--recompute {other.recompute}"] if other.recompute != run.recompute else []
    return " ".join(options)
