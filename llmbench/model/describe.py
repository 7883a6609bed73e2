"""The figures that `llmbench model` prints: the modules, the memory, one forward pass and its kernels."""

from __future__ import annotations

import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from llmbench.errors import CannotRunError, LLMBenchError, UnsupportedError
from llmbench.model.create import build, load, parameter_bytes
from llmbench.model.decoder import Decoder
from llmbench.model.devices import device_of, free_bytes, used_bytes
from llmbench.model.formats import DTYPES, Format
from llmbench.model.implementations import described
from llmbench.model.trace import refuse_beyond_counting, run_once
from llmbench.sizing.lengths import refuse_beyond_positions
from llmbench.sizing.lower import lower
from llmbench.sizing.memory import widest_bytes
from llmbench.sizing.workload import Workload
from llmbench.spec.model import ModelSpec

__all__ = ["BuiltModel", "ForwardPass", "Plan", "TreeRow", "build_on", "first_layers", "forward", "tree"]


class Plan(NamedTuple):
    """The settings with which a model is built and run.

    - `folder`: the folder with the weights. None: random weights.
    """

    impl: str
    device: str
    dtype: Format
    seq_len: int
    batch: int
    folder: Path | None = None


class TreeRow(NamedTuple):
    """One row of the module tree. It describes one module, or several equal modules in different layers.

    - `name`: the dotted name. If there are several modules, `{}` stands for the number of the layer.
    - `module`: the class and its arguments.
    - `instances`: the number of equal modules.
    - `parameters`, `parameter_bytes`: number and bytes of the parameters of one instance, with its submodules. A tied
      parameter counts once, in the first module that has it.
    """

    name: str
    module: str
    instances: int
    parameters: int
    parameter_bytes: int


class BuiltModel(NamedTuple):
    """A built model and its figures.

    - `memory_bytes`: the memory that building the model allocated. On a CPU, this is the growth of the process. None if
      unknown.
    """

    model: Decoder
    device: str
    parameters: int
    parameter_bytes: int
    memory_bytes: int | None
    build_s: float


class ForwardPass(NamedTuple):
    """The result of one forward pass. On meta, `forward_s` and `finite` are None.

    - `kernels`: the names of torch's attention ops and of llmbench ops that ran. The list is empty if attention ran as
      matrix products and a softmax.
    - `logits`: the shape of the logits.
    - `finite`: whether all logits are finite.
    """

    forward_s: float | None
    kernels: list[str]
    logits: list[int]
    finite: bool | None


def first_layers(spec: ModelSpec, count: int | None) -> ModelSpec:
    """Return a spec that keeps only the first `count` layers of each stack. None keeps all layers."""
    if count is None:
        return spec
    encoder = spec.encoder
    most = max(spec.num_hidden_layers, len(encoder.order) if encoder is not None else 0)
    if count > most:
        raise LLMBenchError(
            f"--layers {count:,}: {spec.name} has {most} layers", hint="leave --layers out to build all of them"
        )
    if encoder is not None:
        encoder = msgspec.structs.replace(encoder, pattern=" ".join(encoder.order[:count]))
    pattern = " ".join(spec.order[:count])
    return msgspec.structs.replace(spec, pattern=pattern, encoder=encoder, published_parameters=None)


Sizes = dict[str, tuple[int, int]]
"""The number and the bytes of the parameters of each module, without its submodules. The keys are module names."""


def tree(model: Decoder) -> list[TreeRow]:
    """Return the rows of the module tree. Equal layers share one row."""
    seen: set[int] = set()
    own: Sizes = {}
    for name, module in model.named_modules():
        new = [p for p in module.parameters(recurse=False) if id(p) not in seen]
        seen.update(map(id, new))
        own[name] = (sum(p.numel() for p in new), sum(p.nbytes for p in new))
    rows: list[TreeRow] = []
    for name, module in model.named_modules():
        if not name or any(part.isdigit() for part in name.split(".")):
            continue
        if isinstance(module, nn.ModuleList):
            blocks = [tuple(_rows(block, own, f"{name}.{index}", f"{name}.{{}}")) for index, block in enumerate(module)]
            for block in dict.fromkeys(blocks):
                rows += [row._replace(instances=blocks.count(block)) for row in block]
        else:
            rows.append(_row(name, module, own, name))
    return rows


def _rows(block: nn.Module, own: Sizes, path: str, shown: str) -> list[TreeRow]:
    """Return the rows of the layer at `path` and of its submodules.

    In the names of the rows, `shown` replaces `path`.
    """
    modules = {f"{path}.{inner}" if inner else path: module for inner, module in block.named_modules()}
    return [_row(full, module, own, shown + full.removeprefix(path)) for full, module in modules.items()]


def _row(name: str, module: nn.Module, own: Sizes, shown: str) -> TreeRow:
    sizes = [size for inner, size in own.items() if inner == name or inner.startswith(f"{name}.")]
    return TreeRow(shown, _class(module), 1, sum(count for count, _ in sizes), sum(nbytes for _, nbytes in sizes))


def _class(module: nn.Module) -> str:
    detail = module.extra_repr().replace("in_features=", "").replace("out_features=", "").replace(", bias=False", "")
    name = type(module).__name__
    return f"{name}({detail})" if detail else name


def build_on(spec: ModelSpec, plan: Plan) -> BuiltModel:
    """Build the model of a plan. First checks that the weights and a forward pass fit in memory.

    Raises CannotRunError for a device that is missing or too small, UnsupportedError for a spec that cannot be built
    and for weights that cannot be read, SpecError for sequences that are too long for the model.
    """
    device, dtype = device_of(plan.device), DTYPES[plan.dtype]
    refuse_beyond_positions(spec, plan.seq_len)
    _check_room(spec, plan, device, parameter_bytes(build(spec, impl=plan.impl, device="meta", dtype=dtype)))
    before, start = used_bytes(device), time.perf_counter()
    if plan.folder is None:
        model = build(spec, impl=plan.impl, device=device, dtype=dtype).eval()
    else:
        model = _loaded(plan.folder, plan, device)
    after = used_bytes(device)
    return BuiltModel(
        model=model,
        device=str(device),
        parameters=sum(p.numel() for p in dict.fromkeys(model.parameters())),
        parameter_bytes=parameter_bytes(model),
        memory_bytes=None if before is None or after is None else after - before,
        build_s=time.perf_counter() - start,
    )


def _loaded(folder: Path, plan: Plan, device: torch.device) -> Decoder:
    try:
        return load(folder, impl=plan.impl, device=device, dtype=DTYPES[plan.dtype])
    except UnsupportedError as problem:
        raise UnsupportedError(
            str(problem), hint=f"`llmbench model {folder / 'config.json'}` builds the model with random weights"
        ) from None


def _gib(amount: int) -> str:
    return f"{amount / 2**30:,.1f} GiB"


def _check_room(spec: ModelSpec, plan: Plan, device: torch.device, weights: int) -> None:
    """Raise CannotRunError if the free memory of the device is too small.

    The memory must hold the weights, and the widest op of a forward pass in addition. A forward pass can need more
    memory than this sum, so a model that passes this check may still run out of memory. Tensors on meta need no memory.
    For the device meta, raise SpecError if a tensor has more bytes than torch can count.
    """
    if device.type == "meta":
        refuse_beyond_counting(spec, plan.seq_len, plan.batch)
    room = free_bytes(device)
    if room is None:
        return
    free = f"but {device} has {_gib(room)} free"
    if weights > room:
        raise CannotRunError(
            f"{spec.name}: the weights need {_gib(weights)}, {free}",
            hint="`--layers N` builds only the first N layers; `--trace` and `--device meta` need no memory",
        )
    attention = described(plan.impl).traits.attention
    formats: dict[str, Any] = {"weight_dtype": plan.dtype, "activation_dtype": plan.dtype}
    work = Workload.prefill(plan.seq_len, plan.batch, attention=attention, **formats)
    needed = weights + widest_bytes(lower(spec, work))
    if needed > room:
        tokens = f"{plan.batch:,} × {plan.seq_len:,} tokens"
        raise CannotRunError(
            f"{spec.name}: a forward pass of {tokens} needs at least {_gib(needed)}, {free}",
            hint="choose a smaller --seq or --batch; `--trace` and `--device meta` need no memory",
        )


def forward(built: BuiltModel, plan: Plan) -> ForwardPass:
    """Run two forward passes on random tokens, and time the second pass. The first pass initialises libraries."""
    model, device = built.model, torch.device(built.device)
    tokens = _tokens(model.spec.vocab_size, (plan.batch, plan.seq_len), device)
    ops = _KernelOps()
    # The first call of a higher-order op compiles. Compilation fails under a dispatch mode such as _KernelOps.
    hidden = described(plan.impl).traits.higher_order
    with torch.no_grad(), warnings.catch_warnings():
        # The command prints a note in place of this warning.
        warnings.filterwarnings("ignore", "flex_attention called without torch.compile")
        with _reasons_in_errors(), nullcontext() if hidden else ops:
            shape = list(run_once(model, tokens).shape)
        if device.type == "meta":
            return ForwardPass(None, [], shape, None)
        start = time.perf_counter()
        logits = run_once(model, tokens)
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        forward_s = time.perf_counter() - start
        # This code calls aminmax first, because isfinite(logits) would allocate a mask as large as the logits.
        finite = all(bool(torch.isfinite(bound)) for bound in logits.aminmax())
    return ForwardPass(forward_s, [hidden] if hidden else sorted(ops.names), shape, finite)


@contextmanager
def _reasons_in_errors() -> Iterator[None]:
    """Append torch's warnings to a CannotRunError, because they explain why a kernel cannot run.

    Removes the source locations from the warnings.
    """
    with warnings.catch_warnings(record=True) as caught:
        try:
            yield
        except CannotRunError as problem:
            reasons = [str(warning.message).partition(" (Triggered internally")[0] for warning in caught]
            why = [reason for reason in reasons if not reason.endswith(("because:", "runtime disabled."))]
            raise CannotRunError(" ".join([str(problem), *why]), hint=problem.hint) from None
    for warning in caught:
        warnings.warn_explicit(warning.message, warning.category, warning.filename, warning.lineno)


def _tokens(vocab_size: int, shape: tuple[int, int], device: torch.device) -> Tensor:
    """Return random tokens, which are equal on every device. On meta, they have no values."""
    if device.type == "meta":
        return torch.empty(shape, dtype=torch.int64, device=device)
    return torch.randint(vocab_size, shape, generator=torch.Generator().manual_seed(0)).to(device)


class _KernelOps(TorchDispatchMode):
    """A mode that records the names of torch's attention ops and of all llmbench ops that run."""

    def __init__(self) -> None:
        super().__init__()
        self.names: set[str] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run `func` and record its name."""
        space, _, name = func._schema.name.partition("::")
        if space == "llmbench":
            self.names.add(f"llmbench::{name}")
        elif "attention" in name:
            self.names.add(name.lstrip("_"))
        return func(*args, **(kwargs or {}))
