"""`DeviceSpec`: the figures of a GPU's datasheet, each with its source.

A file `specs/devices/<name>.toml` has the fields of `DeviceSpec`. Every figure has the form
`{ value = ..., source = "NAME" }`. The table `[sources]` of the file describes each source NAME. A figure is left out
if no source states it. It is never guessed, and never zero. The units are bytes, hertz, watts, FLOP/s and bytes per
second. A multiply-add counts as two FLOPs.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal, TypeAlias

import msgspec

DType: TypeAlias = Literal["fp64", "fp64_tensor", "fp32", "tf32", "fp16", "bf16", "fp8", "int8", "fp6", "fp4", "int4"]
"""The number formats of peak rates.

`fp64` and `fp32` are rates of the vector units. `fp64_tensor` and all other formats are rates of the matrix units
(tensor cores, matrix cores).
"""

# The reported total memory of one board varies by up to 7 %, because it depends on ECC, the driver version, and the
# library (NVML or CUDA). Boards with the same name but different memories differ by far more, for example a board with
# 24 GB and its rebuild with 48 GB, or boards with 96 GB and 141 GB.
MEMORY_TOLERANCE = 0.10

_WHOLE = (
    "memory_bytes",
    "usable_memory_bytes",
    "cuda_memory_bytes",
    "l2_cache_bytes",
    "num_sms",
    "shared_memory_per_sm_bytes",
    "link_count",
    "link_gpus",
)
_MEASURES = (
    *_WHOLE,
    "gpu_memory_share",
    "memory_bandwidth_bytes_per_s",
    "boost_clock_hz",
    "tdp_w",
    "link_bytes_per_s",
    "pcie_bytes_per_s",
    "network_bytes_per_s",
)


class Figure(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A number and the name of its source. The `sources` of the device describe the source."""

    value: int | float
    source: str


class Formats(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Number formats and the name of their source. The `sources` of the device describe the source."""

    value: tuple[DType, ...]
    source: str


class DeviceSpec(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """The figures of the datasheet of one GPU or accelerator. The only board with two GPUs is `mi250x`.

    Peak rates are theoretical maxima at the clock that the vendor states. The power limit often keeps the clock lower.
    """

    name: str
    aliases: tuple[str, ...] = ()
    vendor: Literal["nvidia", "amd", "apple", "google", "intel"]
    architecture: str
    compute_capability: str | None = None
    """CUDA compute capability, such as "9.0". None for other vendors."""
    gfx_target: str | None = None
    """LLVM target of an AMD GPU, such as "gfx942". None for other vendors."""
    gpus: int = 1
    """Number of GPUs that a driver reports for the board."""
    nvml_names: tuple[str, ...] = ()
    """Product names exactly as the driver reports them. llmbench compares whole names, because "NVIDIA H200" contains
    "NVIDIA H20", and an H20 has only a seventh of the FLOP/s of an H200."""

    memory_bytes: Figure | None = None
    """Memory according to the datasheet. Vendors often write "80 GB" for 80 GiB. The notes of the device say which unit
    is meant and how we know it."""
    usable_memory_bytes: Figure | None = None
    """Total memory that the driver reports (`nvmlDeviceGetMemoryInfo().total`, `rocm-smi`). It does not include the
    memory that ECC and the firmware use."""
    cuda_memory_bytes: Figure | None = None
    """Total memory that a CUDA program sees (`cudaMemGetInfo`, "total capacity" in PyTorch's messages). It is less than
    the total of the driver. Engines multiply it by their utilization."""
    gpu_memory_share: Figure | None = None
    """Share of the memory that the operating system lets the GPU use by default, if the CPU has the same memory. None:
    the GPU can use all of it."""
    matrix_formats: Formats
    """Number formats that the matrix units multiply. A model in another format needs a conversion first. fp32 is not
    listed, because the vector units of every device multiply fp32."""
    memory_bandwidth_bytes_per_s: Figure | None = None
    l2_cache_bytes: Figure | None = None
    num_sms: Figure | None = None
    """Number of enabled streaming multiprocessors (NVIDIA), compute units (AMD), GPU cores (Apple) or tensor processor
    cores (Intel Gaudi)."""
    shared_memory_per_sm_bytes: Figure | None = None
    """Largest shared memory of one SM (on AMD: LDS of one compute unit). On NVIDIA GPUs with compute capability 8.0 or
    more, one block can use 1 KiB less."""
    boost_clock_hz: Figure | None = None
    """Highest clock of the vector units. The vendor may state tensor-core peaks at a lower clock (H100: 1830 MHz
    instead of 1980 MHz)."""
    tdp_w: Figure | None = None

    dense_flops_per_s: dict[DType, Figure] = {}
    """Peak rates without sparsity, per number format. If the vendor states several rates for a format, this is the rate
    with fp32 accumulation."""
    sparse_flops_per_s: dict[DType, Figure] = {}
    """Peak rates with 2:4 structured sparsity, for hardware that supports it. Vendors often advertise these rates."""

    link_name: str | None = None
    link_bytes_per_s: Figure | None = None
    """Bandwidth of the GPU-to-GPU link. It is the total of both directions, as in datasheets. One direction has half of
    it."""
    link_count: Figure | None = None
    """Number of links of one GPU. All of them together have `link_bytes_per_s`."""
    link_gpus: Figure | None = None
    """Number of GPUs that the links connect in the reference system (the NVLink domain)."""
    pcie_name: str | None = None
    pcie_bytes_per_s: Figure | None = None
    """Bandwidth of PCIe. It is the total of both directions. One direction has half of it."""
    network_bytes_per_s: Figure | None = None
    """One GPU's share of the network bandwidth of a reference system, in ONE direction. The source names the system."""

    sources: dict[str, str]
    """A description of each source by its name: document, revision or date, and a URL if a permanent URL exists."""
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        # msgspec turns a ValueError into a ValidationError, whose message names the place in the file.
        for field in _WHOLE:
            figure: Figure | None = getattr(self, field)
            if figure is not None and not isinstance(figure.value, int):
                raise ValueError(f"`{field}` must be a whole number, not {figure.value}")
        if self.matrix_formats.source not in self.sources:
            raise ValueError(f"`matrix_formats` names the source `{self.matrix_formats.source}`, not in [sources]")
        for field, figure in self.figures().items():
            if not 0 < figure.value < float("inf"):
                raise ValueError(f"`{field}` must be positive and finite, not {figure.value}")
            if figure.source not in self.sources:
                raise ValueError(f"`{field}` names the source `{figure.source}`, which is not in [sources]")

    def figures(self) -> dict[str, Figure]:
        """Return all figures that the device has, by name (`memory_bytes`, `dense_flops_per_s.bf16`)."""
        present = {field: getattr(self, field) for field in _MEASURES if getattr(self, field) is not None}
        present |= {f"dense_flops_per_s.{dtype}": figure for dtype, figure in self.dense_flops_per_s.items()}
        present |= {f"sparse_flops_per_s.{dtype}": figure for dtype, figure in self.sparse_flops_per_s.items()}
        return present

    def peak_flops_per_s(self, dtype: DType, *, sparse: bool = False) -> float | None:
        """Return the peak rate of a number format in FLOP/s (for integers: OP/s), or None if no source states it.

        sparse: return the rate with 2:4 sparsity instead of the dense rate.

        The rate of another format never replaces a missing rate. For example, a device without fp8 has no fp8 peak.
        """
        figure = (self.sparse_flops_per_s if sparse else self.dense_flops_per_s).get(dtype)
        return None if figure is None else float(figure.value)


def device_matching(
    nvml_name: str,
    total_memory_bytes: int | None,
    devices: Iterable[DeviceSpec],
    *,
    num_sms: int | None = None,
) -> DeviceSpec | None:
    """Return the device that matches the report of the driver. Return None if no device or several devices match.

    nvml_name: product name from the driver. It must equal one of the device's `nvml_names`.
    total_memory_bytes: total memory from NVML, CUDA or ROCm. It must agree with the device's memory within
        `MEMORY_TOLERANCE`. Rebuilt boards and memory partitions with other memory sizes have the same product name.
    num_sms: number of SMs or compute units, if it is known. It must agree with the device too, because an AMD compute
        partition has the product name of the whole board.
    """
    matches = [
        device
        for device in devices
        if nvml_name in device.nvml_names
        and _memory_agrees(device, total_memory_bytes)
        and (num_sms is None or device.num_sms is None or device.num_sms.value == num_sms)
    ]
    return matches[0] if len(matches) == 1 else None


def _memory_agrees(device: DeviceSpec, total_memory_bytes: int | None) -> bool:
    known = device.usable_memory_bytes or device.memory_bytes
    if total_memory_bytes is None or known is None:
        return True
    return abs(total_memory_bytes - known.value) <= MEMORY_TOLERANCE * known.value
