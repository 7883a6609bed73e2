"""A built model in figures: its tree of modules, the memory it took, one forward pass and the kernels that ran."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from llmbench.errors import CannotRunError, LLMBenchError
from llmbench.model.create import build, parameter_bytes
from llmbench.model.decoder import Decoder
from llmbench.model.implementations import IMPLEMENTATIONS
from llmbench.model.trace import DTYPES, Format, run_once
from llmbench.spec.model import ModelSpec
from llmbench.spec.position import LearnedPositions

__all__ = ["IMPLEMENTATIONS", "Built", "Ran", "TreeRow", "build_on", "first_layers", "forward", "tree"]


class TreeRow(NamedTuple):
    """A module of the tree, or `instances` equal ones (`{}` stands for the layer): its class, what it is made with, and
    the parameters of one, those below it included; tied ones are counted where they stand first."""

    name: str
    module: str
    instances: int
    parameters: int


class Built(NamedTuple):
    """A model in memory. memory_bytes: by how much that grew (on a CPU, the process), None where it cannot be told."""

    model: Decoder
    device: str
    parameters: int
    parameter_bytes: int
    memory_bytes: int | None
    build_s: float


class Ran(NamedTuple):
    """One forward pass. `kernels` are torch's attention ops that ran; none means plain products and a softmax."""

    forward_s: float
    kernels: list[str]
    logits: list[int]
    finite: bool


def first_layers(spec: ModelSpec, count: int | None) -> ModelSpec:
    """The model with its first `count` layers (of each stack)."""
    if count is None:
        return spec
    encoder = spec.encoder
    if encoder is not None:
        encoder = msgspec.structs.replace(encoder, pattern=" ".join(encoder.order[:count]))
    pattern = " ".join(spec.order[:count])
    return msgspec.structs.replace(spec, pattern=pattern, encoder=encoder, published_parameters=None)


def tree(spec: ModelSpec) -> list[TreeRow]:
    """Every module of the model, equal layers once."""
    model = build(spec, device="meta")
    seen: set[int] = set()
    own: dict[str, int] = {}
    for name, module in model.named_modules():
        new = [p for p in module.parameters(recurse=False) if id(p) not in seen]
        seen.update(map(id, new))
        own[name] = sum(p.numel() for p in new)
    rows: list[TreeRow] = []
    for name, module in model.named_modules():
        if not name or _inside_repeated(name):
            continue
        total = sum(count for inner, count in own.items() if inner == name or inner.startswith(f"{name}."))
        if isinstance(module, nn.ModuleList):
            blocks = [_below(block, own, f"{name}.{index}", name) for index, block in enumerate(module)]
            for block in dict.fromkeys(map(tuple, blocks)):
                times = blocks.count(list(block))
                rows += [row._replace(instances=times) for row in block]
            continue
        rows.append(TreeRow(name, _class(module), 1, total))
    return rows


def _inside_repeated(name: str) -> bool:
    return any(part.isdigit() for part in name.split("."))


def _below(block: nn.Module, own: dict[str, int], where: str, group: str) -> list[TreeRow]:
    inside = {f"{where}.{inner}" if inner else where: module for inner, module in block.named_modules()}
    rows = []
    for full, module in inside.items():
        total = sum(own[name] for name in inside if name == full or name.startswith(f"{full}."))
        rows.append(TreeRow(f"{group}.{{}}{full.removeprefix(where)}", _class(module), 1, total))
    return rows


def _class(module: nn.Module) -> str:
    detail = module.extra_repr().replace("in_features=", "").replace("out_features=", "").replace(", bias=False", "")
    name = type(module).__name__
    return f"{name}({detail})" if detail else name


def build_on(spec: ModelSpec, *, impl: str, device: str, dtype: Format) -> Built:
    """The model with random weights on a device ("auto": a GPU where there is one). Raises CannotRunError where that is
    not there, or its memory is too small."""
    where = _device(device)
    meta = build(spec, impl=impl, device="meta", dtype=DTYPES[dtype])
    needed = parameter_bytes(meta)
    room = _room(where)
    if room is not None and needed > room:
        raise CannotRunError(
            f"{spec.name}: weights of {needed / 2**30:,.1f} GiB, and {where} has {room / 2**30:,.1f} GiB free",
            hint="`--layers N` builds the first layers, `--trace` and `--device meta` need no memory",
        )
    before, start = _taken(where), time.perf_counter()
    model = build(spec, impl=impl, device=where, dtype=DTYPES[dtype]).eval()
    after = _taken(where)
    return Built(
        model=model,
        device=str(where),
        parameters=sum(p.numel() for p in dict.fromkeys(model.parameters())),
        parameter_bytes=parameter_bytes(model),
        memory_bytes=None if before is None or after is None else after - before,
        build_s=time.perf_counter() - start,
    )


def forward(built: Built, *, seq_len: int, batch: int) -> Ran:
    """One forward pass on random tokens: the second, for the first one sets libraries up."""
    model, device = built.model, torch.device(built.device)
    learned = model.spec.positions
    if isinstance(learned, LearnedPositions) and seq_len > learned.num_positions - learned.offset:
        raise LLMBenchError(
            f"{model.spec.name} has learned positions for {learned.num_positions - learned.offset:,} tokens, "
            f"not {seq_len:,}",
            hint="choose a smaller --seq",
        )
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(model.spec.vocab_size, (batch, seq_len), generator=generator).to(device)
    ran = _AttentionOps()
    with torch.no_grad():
        with ran:
            logits = run_once(model, tokens)
        start = time.perf_counter()
        if device.type != "meta":
            logits = run_once(model, tokens)
        if device.type == "cuda":
            torch.cuda.synchronize(device)
    taken = time.perf_counter() - start
    finite = device.type == "meta" or bool(torch.isfinite(logits).all())
    return Ran(taken, sorted(ran.names), list(logits.shape), finite)


class _AttentionOps(TorchDispatchMode):
    """The names of the attention ops that torch runs."""

    def __init__(self) -> None:
        super().__init__()
        self.names: set[str] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run `func`, and take its name."""
        name = func._schema.name.partition("::")[2]
        if "attention" in name:
            self.names.add(name.lstrip("_"))
        return func(*args, **(kwargs or {}))


def _device(name: str) -> torch.device:
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError:
        raise LLMBenchError(f"--device: no device `{name}`", hint="auto, cpu, cuda, cuda:1 or meta") from None
    if device.type == "cuda" and not torch.cuda.is_available():
        raise CannotRunError("there is no CUDA GPU here, or this PyTorch cannot use it", hint="use --device cpu")
    if device.type not in ("cpu", "cuda", "meta"):
        raise CannotRunError(f"--device {name}: only cpu, cuda and meta are supported")
    return device


def _room(device: torch.device) -> int | None:
    """Bytes free on a device, where that can be told."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    meminfo = Path("/proc/meminfo")
    if device.type != "cpu" or not meminfo.exists():
        return None
    found = [line.split()[1] for line in meminfo.read_text().splitlines() if line.startswith("MemAvailable")]
    return int(found[0]) * 1024 if found else None


def _taken(device: torch.device) -> int | None:
    """Bytes in use by this process: on the GPU what torch has allocated, on a CPU what is resident."""
    if device.type == "cuda":
        return torch.cuda.memory_allocated(device)
    status = Path("/proc/self/status")
    if device.type != "cpu" or not status.exists():
        return None
    found = [line.split()[1] for line in status.read_text().splitlines() if line.startswith("VmRSS")]
    return int(found[0]) * 1024 if found else None
