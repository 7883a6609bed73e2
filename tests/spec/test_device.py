"""Device datasheets: strict loading, cited sources, consistent figures, and exact matching of names."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from llmbench.spec.device import DeviceSpec, Figure, device_matching

FOLDER = Path(__file__).parents[2] / "specs" / "devices"
FILES = sorted(FOLDER.glob("*.toml"))
GIB = 2**30
MIB = 2**20


def load(path: Path) -> DeviceSpec:
    return msgspec.toml.decode(path.read_text(encoding="utf-8"), type=DeviceSpec)


DEVICES = [load(path) for path in FILES]
BY_NAME = {device.name: device for device in DEVICES}
each_device = pytest.mark.parametrize("device", DEVICES, ids=lambda device: device.name)


def value(figure: Figure | None) -> float:
    assert figure is not None
    return figure.value


def test_every_promised_device_is_there() -> None:
    assert set(BY_NAME) >= {
        *(
            "v100-sxm2-32gb",
            "t4",
            "a10g",
            "a100-40gb-sxm",
            "a100-40gb-pcie",
            "a100-80gb-sxm",
            "a100-80gb-pcie",
        ),
        *(
            "l4",
            "l40s",
            "rtx-3090",
            "rtx-4090",
            "rtx-5090",
            "h20",
            "h100-sxm",
            "h100-pcie",
            "h100-nvl",
            "h800",
        ),
        *(
            "h200",
            "gh200-96gb",
            "gh200-144gb",
            "b200",
            "gb200",
            "b300",
            "mi250x",
            "mi300x",
            "mi325x",
            "mi355x",
        ),
    }


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_file_is_named_after_its_device_and_opens_with_its_names(path: Path) -> None:
    device = load(path)
    assert device.name == path.stem
    first, second, *_ = path.read_text(encoding="utf-8").splitlines()
    assert first.startswith("name = ")
    assert second.startswith("aliases = ")


def test_names_and_aliases_are_unique_across_files() -> None:
    names = [name for device in DEVICES for name in (device.name, *device.aliases)]
    assert sorted(names) == sorted(set(names))
    assert all(name == name.lower() and " " not in name for name in names)


@each_device
def test_every_source_is_cited_and_every_citation_has_a_source(device: DeviceSpec) -> None:
    cited = {figure.source for figure in device.figures().values()} | {device.matrix_formats.source}
    assert cited <= set(device.sources)
    # A leftover source is a figure someone lost.
    assert set(device.sources) <= cited | {"whitepaper", "datasheet", "h100"}, set(device.sources) - cited
    assert all(len(text) > 20 for text in device.sources.values())


@each_device
def test_target_belongs_to_the_vendor(device: DeviceSpec) -> None:
    assert (device.compute_capability is not None) == (device.vendor == "nvidia")
    assert (device.gfx_target is not None) == (device.vendor == "amd")


@each_device
def test_sizing_needs_are_met(device: DeviceSpec) -> None:
    """A device without these is of no use to the sizing commands."""
    assert device.memory_bytes
    assert device.memory_bandwidth_bytes_per_s
    assert device.num_sms or device.vendor == "google" or device.name == "gb300"
    assert device.peak_flops_per_s("bf16") or device.peak_flops_per_s("fp16") or device.vendor == "apple"
    assert (device.link_name is None) == (device.link_bytes_per_s is None)
    assert (device.pcie_name is None) == (device.pcie_bytes_per_s is None)


@each_device
def test_matrix_formats_have_the_formats_of_the_peak_rates(device: DeviceSpec) -> None:
    """A datasheet that states a rate of the matrix units for a format proves that they compute it."""
    formats = set(device.matrix_formats.value)
    assert set(device.dense_flops_per_s) - {"fp64", "fp64_tensor", "fp32"} <= formats
    alike = {
        other.matrix_formats.value
        for other in DEVICES
        if (other.vendor, other.compute_capability, other.gfx_target)
        == (device.vendor, device.compute_capability, device.gfx_target)
    }
    assert len(alike) == 1


def test_matrix_formats_of_each_generation() -> None:
    """The first generation of each vendor that computes a format."""
    for dtype, least in (("fp16", 7.0), ("int8", 7.5), ("bf16", 8.0), ("fp8", 8.9), ("fp4", 10.0)):
        for device in DEVICES:
            if device.compute_capability is not None:
                computes = dtype in device.matrix_formats.value
                assert computes == (float(device.compute_capability) >= least), (device.name, dtype)
    assert {device.name for device in DEVICES if device.vendor == "amd" and "fp8" in device.matrix_formats.value} == {
        "mi300x",
        "mi325x",
        "mi355x",
    }


@each_device
def test_usable_memory_is_a_little_less_than_the_capacity(device: DeviceSpec) -> None:
    if device.usable_memory_bytes is not None:
        assert 0.92 <= value(device.usable_memory_bytes) / value(device.memory_bytes) <= 1.0


@each_device
def test_sparse_is_twice_dense(device: DeviceSpec) -> None:
    for dtype, sparse in device.sparse_flops_per_s.items():
        dense = device.dense_flops_per_s[dtype]
        assert dense.value < sparse.value
        if abs(sparse.value / dense.value - 2) > 0.001:  # the datasheets' own rounding
            reason = "The rate with sparsity is not twice the dense rate for"
            said = [note for note in device.notes if note.startswith(reason)]
            assert len(said) == 1
            assert dtype in said[0].split(":")[0]


@each_device
def test_peaks_are_ordered(device: DeviceSpec) -> None:
    peak = device.peak_flops_per_s
    assert device.sparse_flops_per_s.keys() <= device.dense_flops_per_s.keys()
    for table in (device.dense_flops_per_s, device.sparse_flops_per_s):
        if "fp16" not in table and "bf16" not in table:
            continue
        narrow = table.get("fp16", table.get("bf16"))
        assert table.get("bf16", narrow).value == value(narrow)
        if "fp8" in table and device.name != "gaudi3":  # its datasheet states the same peak for bf16 and fp8
            assert table["fp8"].value == pytest.approx(2 * value(narrow), rel=0.02)
        if "tf32" in table:
            assert table["tf32"].value == pytest.approx(value(narrow) / 2, rel=0.02)
    if (bf16 := peak("bf16")) and (fp32 := peak("fp32")):
        assert bf16 > 1.9 * fp32


def fp32_flops_per_clock_per_sm(device: DeviceSpec) -> int:
    """Two a lane: 64 lanes up to A100 and in CDNA 2, 128 after (in CDNA 3 and 4 by dual issue)."""
    return 128 if device.compute_capability in {"7.0", "7.5", "8.0"} or device.gfx_target == "gfx90a" else 256


@each_device
def test_fp32_peak_is_lanes_times_clock(device: DeviceSpec) -> None:
    fp32 = device.peak_flops_per_s("fp32")
    if fp32 is None or device.boost_clock_hz is None:
        pytest.skip("no fp32 peak or no clock with a source")
    lanes = fp32_flops_per_clock_per_sm(device) * value(device.num_sms) * device.boost_clock_hz.value
    assert fp32 == pytest.approx(lanes, rel=0.03)


def test_traps() -> None:
    """The numbers that tables on the web get wrong; each from the datasheet named in its file."""
    peak = {name: device.peak_flops_per_s for name, device in BY_NAME.items()}
    assert peak["h100-sxm"]("fp8") == 1978.9e12  # 3958 is with sparsity
    assert peak["h100-pcie"]("bf16") == 756.5e12
    assert peak["a10g"]("bf16") == 70e12  # 125 is the A10
    assert peak["h20"]("bf16") == 148e12
    assert peak["rtx-4090"]("bf16") == 165.2e12  # 330 is with fp16 accumulation
    assert peak["gb200"]("bf16") == 2500e12  # per GPU, not per superchip
    assert peak["b300"]("fp4", sparse=True) == 18000e12
    assert peak["a100-80gb-sxm"]("fp8") is None  # no fallback to another dtype
    assert value(BY_NAME["h800"].link_bytes_per_s) == 400e9
    assert value(BY_NAME["h100-nvl"].memory_bytes) == 94 * GIB  # one card of the pair
    card, die = BY_NAME["mi250x"], BY_NAME["mi250x-gcd"]
    assert value(card.memory_bytes) == 2 * value(die.memory_bytes)
    assert card.peak_flops_per_s("bf16") == 2 * (die.peak_flops_per_s("bf16") or 0)


# name and total in MiB as nvidia-smi, CUDA or ROCm print them; None: must not be recognised
REPORTED = [
    ("NVIDIA H200", 143771, "h200"),
    ("NVIDIA H200", 143156, "h200"),  # CUDA's total, a little below NVML's
    ("NVIDIA H20", 97871, "h20"),
    ("NVIDIA H20", 143771, None),  # the 141 GB H20 is another product
    ("NVIDIA H200 NVL", 143771, None),
    ("NVIDIA H100 80GB HBM3", 81559, "h100-sxm"),
    ("NVIDIA H100 PCIe", 81559, "h100-pcie"),
    ("NVIDIA H100 NVL", 95830, "h100-nvl"),
    ("NVIDIA H100", 81559, None),
    ("NVIDIA H800", 81559, "h800"),
    ("NVIDIA H800 PCIe", 81559, None),
    ("NVIDIA GH200 480GB", 97871, "gh200-96gb"),
    ("NVIDIA GH200 144G HBM3e", 145920, "gh200-144gb"),
    ("NVIDIA A100-SXM4-40GB", 40536, "a100-40gb-sxm"),
    ("NVIDIA A100-SXM4-40GB", 40960, "a100-40gb-sxm"),
    ("NVIDIA A100-SXM4-80GB", 81920, "a100-80gb-sxm"),
    ("NVIDIA A100-SXM4-40GB MIG 1g.5gb", 4864, None),
    ("NVIDIA A10", 23028, None),
    ("NVIDIA A10G", 23028, "a10g"),
    ("NVIDIA A10G", 24576, "a10g"),  # ECC off
    ("NVIDIA L4", 23034, "l4"),
    ("NVIDIA L40S", 46068, "l40s"),
    ("NVIDIA L40", 46068, None),
    ("Tesla T4", 15109, "t4"),
    ("Tesla V100-SXM2-32GB", 32510, "v100-sxm2-32gb"),
    ("NVIDIA GeForce RTX 4090", 24564, "rtx-4090"),
    ("NVIDIA GeForce RTX 4090", 49140, None),  # a rebuilt card
    ("NVIDIA GeForce RTX 4090 D", 24564, None),
    ("NVIDIA GeForce RTX 5090 Laptop GPU", 24463, None),
    ("NVIDIA B200", 183359, "b200"),
    ("NVIDIA GB200", 189471, "gb200"),
    ("NVIDIA B300 SXM6 AC", 275040, "b300"),
    ("NVIDIA GB300", 284208, "gb300"),
    ("AMD Instinct MI250X", 65520, "mi250x-gcd"),
    ("AMD Instinct MI250X/MI250", 65520, None),
    ("AMD Instinct MI300X", 196592, "mi300x"),
    ("AMD Instinct MI300X", 24574, None),  # an eighth: a memory partition
    ("AMD Instinct MI300A", 131072, None),
    ("nvidia h200", 143771, None),
    ("NVIDIA H200 ", 143771, None),
    ("", 143771, None),
]


@pytest.mark.parametrize(("reported", "mib", "expected"), REPORTED)
def test_matching_is_exact(reported: str, mib: int, expected: str | None) -> None:
    device = device_matching(reported, mib * MIB, DEVICES)
    assert (device and device.name) == expected
    if expected is not None:
        assert device is device_matching(reported, None, reversed(DEVICES))


@each_device
def test_a_device_matches_its_own_names_only(device: DeviceSpec) -> None:
    memory = int(value(device.usable_memory_bytes or device.memory_bytes))
    for name in device.nvml_names:
        assert device_matching(name, memory, DEVICES) is device
        assert device_matching(name[:-1], memory, DEVICES) is None
        assert device_matching(name + "x", memory, DEVICES) is None


def test_ambiguity_is_no_match() -> None:
    t4 = BY_NAME["t4"]
    twins = [t4, msgspec.structs.replace(t4, name="t4-twin")]
    assert device_matching("Tesla T4", 15360 * MIB, twins) is None
    bigger = msgspec.structs.replace(t4, name="t4-32gb", usable_memory_bytes=Figure(32 * GIB, "datasheet"))
    assert device_matching("Tesla T4", 15360 * MIB, [t4, bigger]) is t4
    assert device_matching("Tesla T4", None, [t4, bigger]) is None


def test_sm_count_refuses_a_partition() -> None:
    mi300x = BY_NAME["mi300x"]
    total = int(value(mi300x.usable_memory_bytes))
    assert device_matching("AMD Instinct MI300X", total, DEVICES, num_sms=304) is mi300x
    assert device_matching("AMD Instinct MI300X", total, DEVICES, num_sms=38) is None


FORMATS = 'matrix_formats = { value = ["fp16"], source = "sheet" }'
MINIMAL = f'name = "x"\nvendor = "nvidia"\narchitecture = "X"\n{FORMATS}\nLINE\n[sources]\nsheet = "A sheet"\n'


@pytest.mark.parametrize(
    ("line", "complaint"),
    [
        ('memory_bytes = { value = 1, source = "other" }', "names the source `other`"),
        ('memory_bytes = { value = 1.5, source = "sheet" }', "whole number"),
        ('tdp_w = { value = 0, source = "sheet" }', "positive"),
        ('tdp_w = { value = nan, source = "sheet" }', "positive"),
        ("tdp_w = 300", "Expected `object | null`"),
        ('tdp = { value = 300, source = "sheet" }', "unknown field `tdp`"),
        ('dense_flops_per_s = { bf17 = { value = 1.0, source = "sheet" } }', "bf17"),
        (
            'dense_flops_per_s = { bf16 = { value = 1.0, source = "other" } }',
            "`dense_flops_per_s.bf16` names the source",
        ),
    ],
)
def test_a_bad_file_is_refused(line: str, complaint: str) -> None:
    with pytest.raises(msgspec.ValidationError) as caught:
        msgspec.toml.decode(MINIMAL.replace("LINE", line), type=DeviceSpec)
    assert complaint in str(caught.value)


def test_a_spec_survives_a_round_trip() -> None:
    for device in DEVICES:
        assert msgspec.convert(msgspec.to_builtins(device), type=DeviceSpec) == device
