"""DeviceSpec: the figures of a GPU's datasheet, each with its source.

A file `specs/devices/<name>.toml` mirrors `DeviceSpec`. Every figure is an inline table
`{ value = ..., source = "key" }` whose key is in that file's `[sources]`. A figure without a source is absent; it is
never guessed and never zero. Units are bytes, hertz, watts, FLOPs (a multiply-add is two) and bytes per second.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal, TypeAlias

import msgspec

DType: TypeAlias = Literal["fp64", "fp64_tensor", "fp32", "tf32", "fp16", "bf16", "fp8", "int8", "fp6", "fp4", "int4"]
"""Number formats of peaks. `fp64` and `fp32` are the plain vector units; `fp64_tensor` and every dtype from
`tf32` down are the matrix units (tensor cores, matrix cores)."""

# One product's driver-reported total moves by up to 7 % (ECC on or off, driver age, NVML against CUDA); two
# products that share a name differ by far more (24 GB against a 48 GB rebuild, 96 GB against 141 GB).
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
    """A number, and the key of its document in the device's `sources`."""

    value: int | float
    source: str


class DeviceSpec(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """One GPU as one driver device, by its datasheet (only `mi250x` is a card of two; its notes say so).

    Peaks are the vendor's theoretical maxima at the clock that it quotes. Power often limits the clock to less.
    """

    name: str
    aliases: tuple[str, ...] = ()
    vendor: Literal["nvidia", "amd"]
    architecture: str
    compute_capability: str | None = None
    """CUDA compute capability, "9.0"; None for AMD."""
    gfx_target: str | None = None
    """LLVM target of an AMD GPU, "gfx942"; None for NVIDIA."""
    nvml_names: tuple[str, ...] = ()
    """Product names exactly as the driver reports them. Compared whole, never in part: "NVIDIA H200" contains
    "NVIDIA H20", and H20 has a seventh of the compute."""

    memory_bytes: Figure | None = None
    """Capacity the datasheet quotes. Vendors write "80 GB" for 80 GiB; the notes say how we know."""
    usable_memory_bytes: Figure | None = None
    """Total by the driver (`nvmlDeviceGetMemoryInfo().total`, `rocm-smi`), less ECC's and firmware's part."""
    memory_bandwidth_bytes_per_s: Figure | None = None
    l2_cache_bytes: Figure | None = None
    num_sms: Figure | None = None
    """Streaming multiprocessors (NVIDIA) or compute units (AMD) enabled."""
    shared_memory_per_sm_bytes: Figure | None = None
    """Largest shared memory (AMD: LDS) of one SM; a single block may use 1 KiB less on NVIDIA from 8.0 on."""
    boost_clock_hz: Figure | None = None
    """Highest vector-unit clock. Tensor peaks may be quoted at a lower one (H100: 1830 MHz, not 1980)."""
    tdp_w: Figure | None = None

    dense_flops_per_s: dict[DType, Figure] = {}
    """Peak without sparsity, with fp32 accumulation where the vendor distinguishes."""
    sparse_flops_per_s: dict[DType, Figure] = {}
    """Peak with 2:4 structured sparsity; only where the hardware has it. Headline numbers are often these."""

    link_name: str | None = None
    link_bytes_per_s: Figure | None = None
    """GPU-to-GPU link: one total over both directions, as datasheets quote it; one direction is half."""
    pcie_name: str | None = None
    pcie_bytes_per_s: Figure | None = None
    """Both directions together. One direction is half."""
    network_bytes_per_s: Figure | None = None
    """One GPU's share of a reference system's network, ONE direction; the source names the system."""

    sources: dict[str, str]
    """Key -> citation: document, revision or date, and a URL where there is a lasting one."""
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        # msgspec turns a ValueError here into a ValidationError that carries the path in the file.
        for field in _WHOLE:
            figure: Figure | None = getattr(self, field)
            if figure is not None and not isinstance(figure.value, int):
                raise ValueError(f"`{field}` must be a whole number, not {figure.value}")
        for field, figure in self.figures().items():
            if not 0 < figure.value < float("inf"):
                raise ValueError(f"`{field}` must be positive and finite, not {figure.value}")
            if figure.source not in self.sources:
                raise ValueError(f"`{field}` cites the source `{figure.source}`, which is not in [sources]")

    def figures(self) -> dict[str, Figure]:
        """Every figure present, by its dotted name (`memory_bytes`, `dense_flops_per_s.bf16`)."""
        present = {field: getattr(self, field) for field in _MEASURES if getattr(self, field) is not None}
        present |= {f"dense_flops_per_s.{dtype}": figure for dtype, figure in self.dense_flops_per_s.items()}
        present |= {f"sparse_flops_per_s.{dtype}": figure for dtype, figure in self.sparse_flops_per_s.items()}
        return present

    def peak_flops_per_s(self, dtype: DType, *, sparse: bool = False) -> float | None:
        """Peak FLOP/s (integers: OP/s) of `dtype`, dense unless asked; None where no source gives one.

        There is no fallback to another dtype: a device without fp8 has no fp8 peak.
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
    """The only device that matches the driver's report; None if there is none or more than one.

    nvml_name must equal one of a device's `nvml_names`. total_memory_bytes (from NVML, CUDA or ROCm) must be within
    `MEMORY_TOLERANCE` of the device's: rebuilt cards and memory partitions share a name. num_sms, if the caller knows
    it, must agree too: an AMD compute partition keeps the card's name.
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
