"""DeviceSpec: the figures of a GPU's datasheet, each with its source.

A file `specs/devices/<name>.toml` has the fields of `DeviceSpec`. Every figure is an inline table
`{ value = ..., source = "NAME" }`, and the table `[sources]` of the same file describes the source NAME. A figure
without a source is left out: it is never guessed and never zero. Units are bytes, hertz, watts, FLOP/s (a multiply-add
counts as two) and bytes per second.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal, TypeAlias

import msgspec

DType: TypeAlias = Literal["fp64", "fp64_tensor", "fp32", "tf32", "fp16", "bf16", "fp8", "int8", "fp6", "fp4", "int4"]
"""Number formats of peak rates. `fp64` and `fp32` are rates of the vector units. `fp64_tensor` and all other formats
are rates of the matrix units (tensor cores, matrix cores)."""

# The total memory that drivers report for one product varies by up to 7 % (with ECC, driver version, NVML or CUDA).
# Products that share a name differ by much more (24 GB and a 48 GB rebuild, 96 GB and 141 GB).
MEMORY_TOLERANCE = 0.10

_WHOLE = ("memory_bytes", "usable_memory_bytes", "l2_cache_bytes", "num_sms", "shared_memory_per_sm_bytes")
_MEASURES = (
    *_WHOLE,
    "memory_bandwidth_bytes_per_s",
    "boost_clock_hz",
    "tdp_w",
    "link_bytes_per_s",
    "pcie_bytes_per_s",
    "network_bytes_per_s",
)


class Figure(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A number, and the name of its source in the `sources` of the device."""

    value: int | float
    source: str


class DeviceSpec(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """The figures of one GPU's datasheet. Only `mi250x` describes a board with two GPUs, as its notes say.

    Peaks are the theoretical maxima at the clock that the vendor quotes. The power limit often keeps the clock lower.
    """

    name: str
    aliases: tuple[str, ...] = ()
    vendor: Literal["nvidia", "amd"]
    architecture: str
    compute_capability: str | None = None
    """CUDA compute capability, such as "9.0". None for AMD."""
    gfx_target: str | None = None
    """LLVM target of an AMD GPU, such as "gfx942". None for NVIDIA."""
    nvml_names: tuple[str, ...] = ()
    """Product names exactly as the driver reports them. Only whole names are compared, because "NVIDIA H200" contains
    "NVIDIA H20", which has a seventh of the FLOP/s."""

    memory_bytes: Figure | None = None
    """Memory by the datasheet. Vendors write "80 GB" for 80 GiB. The notes say how we know which unit is meant."""
    usable_memory_bytes: Figure | None = None
    """Total that the driver reports (`nvmlDeviceGetMemoryInfo().total`, `rocm-smi`), without the memory that ECC and
    firmware use."""
    memory_bandwidth_bytes_per_s: Figure | None = None
    l2_cache_bytes: Figure | None = None
    num_sms: Figure | None = None
    """Number of enabled streaming multiprocessors (NVIDIA) or compute units (AMD)."""
    shared_memory_per_sm_bytes: Figure | None = None
    """Largest shared memory (AMD: LDS) of one SM. On NVIDIA GPUs with compute capability 8.0 or more, one block can use
    1 KiB less."""
    boost_clock_hz: Figure | None = None
    """Highest clock of the vector units. The vendor may quote tensor peaks at a lower clock (H100: 1830 MHz, not
    1980)."""
    tdp_w: Figure | None = None

    dense_flops_per_s: dict[DType, Figure] = {}
    """Peak rates without sparsity, per number format. If the vendor gives several, the one with fp32 accumulation."""
    sparse_flops_per_s: dict[DType, Figure] = {}
    """Peak rates with 2:4 structured sparsity, for hardware that supports it. Vendors often advertise these rates."""

    link_name: str | None = None
    link_bytes_per_s: Figure | None = None
    """Bandwidth of the GPU-to-GPU link, total of both directions as in datasheets. One direction has half of it."""
    pcie_name: str | None = None
    pcie_bytes_per_s: Figure | None = None
    """Bandwidth of PCIe, total of both directions. One direction has half of it."""
    network_bytes_per_s: Figure | None = None
    """One GPU's share of the network bandwidth of a reference system, in ONE direction. The source names the system."""

    sources: dict[str, str]
    """Each source by its name: document, revision or date, and a URL if there is a permanent one."""
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        # msgspec turns a ValueError into a ValidationError that names the place in the file.
        for field in _WHOLE:
            figure: Figure | None = getattr(self, field)
            if figure is not None and not isinstance(figure.value, int):
                raise ValueError(f"`{field}` must be a whole number, not {figure.value}")
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
        """Return the peak FLOP/s (for integers: OP/s) of `dtype`, or None if no source gives it. The default is dense.

        Another format never replaces a missing one: a device without fp8 has no fp8 peak.
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
    """Return the device that matches the driver's report, or None if no device or several devices match.

    `nvml_name` must equal one of the device's `nvml_names`. `total_memory_bytes` (from NVML, CUDA or ROCm) must agree
    with the device's memory within `MEMORY_TOLERANCE`, because rebuilt boards and memory partitions have the same name.
    `num_sms`, if given, must also agree, because an AMD compute partition has the name of the whole board.
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
