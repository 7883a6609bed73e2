"""The real model without a GPU and without memory: FLOPs and saved bytes of its own forward, joined to the ops.

FLOPs are counted by torch's FlopCounterMode on meta tensors; counters count score pairs that the mask throws away, so
the ops they stand beside count them too. Saved bytes are what autograd still keeps for backward when the loss is there,
by saved_tensors_hooks on fake tensors, each storage once, with whatever saved it first, and parameters apart; beside
the ops of "eager" kernels.

What is not the model's own forward:

* Only the first two layers of each kind are traced; what the second has stands for all that follow it.
* Experts get even shares of the rows, because on tensors without values no token chooses.
* FLOPs are counted with `standard` attention, which every model can be computed with. Bytes of "flash" are those of a
  flash kernel: q, k, v, the output and an fp32 log-sum-exp. Norms keep their input and fp32 statistics, as torch's
  CUDA kernels do; on a CPU some of them keep more.

B batch, N query heads, K KV heads, S query length, T key length, H head dim.
"""

from __future__ import annotations

import math
import weakref
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, Literal, NamedTuple

import msgspec
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode
from torch.utils.flop_counter import FlopCounterMode

from llmbench.errors import SpecError
from llmbench.model.create import build, materialise
from llmbench.model.decoder import Decoder
from llmbench.model.ffn import ExpertsLayer, even_shares
from llmbench.model.formats import DTYPES, Format
from llmbench.model.implementations.interface import Scores, Seen
from llmbench.model.implementations.plain import STANDARD
from llmbench.model.scopes import Attributed, Scopes
from llmbench.sizing.lengths import refuse_beyond_positions
from llmbench.sizing.lower import lower
from llmbench.sizing.memory import widest_bytes
from llmbench.sizing.op import Op
from llmbench.sizing.workload import Workload
from llmbench.spec.ffn import Activation
from llmbench.spec.model import ModelSpec

Attention = Literal["flash", "standard"]

LARGEST_BYTES = 2**60
"""Bytes of an op that can still be traced: torch counts those of a tensor in 64 bits, without memory too."""


class TracedOp(NamedTuple):
    """An op of all its layers, analytic and traced. `forward_flops` and `saved_bytes` are None where the trace found
    something that is no op; `recurrent` ops are counted in their step form, which is not what torch computes."""

    name: str
    layer: str
    instances: int
    recurrent: bool
    forward_flops: int | None
    traced_flops: int
    saved_bytes: int | None
    traced_saved_bytes: int


class Trace(NamedTuple):
    """All ops, and how many of the model's layers stood for all of them."""

    ops: list[TracedOp]
    layers_traced: int


def trace(
    spec: ModelSpec, *, seq_len: int, batch: int = 1, dtype: Format = "bf16", attention: Attention = "flash"
) -> Trace:
    """Trace one forward pass (and its loss) of a training step. Raises UnsupportedError for what is not built,
    SpecError for sequences that the model cannot read or torch cannot count."""
    refuse_beyond_positions(spec, seq_len)
    refuse_beyond_counting(spec, seq_len, batch)
    short = shortened(spec)
    work = Workload.train(
        seq_len,
        batch,
        weight_dtype=dtype,
        activation_dtype=dtype,
        masked_pairs=True,
        attention=attention,
        kernels="eager",
    )
    names = {name for op in lower(short, work) for name in op.names()}
    model = build(short, impl="standard", device="meta", dtype=DTYPES[dtype])
    flops = _homes(traced_flops(model, names, seq_len, batch), names)
    saved = _homes(traced_saved_bytes(model, names, seq_len, batch, DTYPES[dtype], attention), names)
    return Trace(_joined(lower(spec, work), spec, short, flops, saved), len(short.order))


def refuse_beyond_counting(spec: ModelSpec, seq_len: int, batch: int) -> None:
    """Raise SpecError where an op, with its scores held, is larger than LARGEST_BYTES."""
    work = Workload.prefill(seq_len, batch, attention="standard", activation_dtype="fp32")
    if widest_bytes(lower(spec, work)) > LARGEST_BYTES:
        raise SpecError(
            f"{spec.name}: {batch:,} × {seq_len:,} tokens make tensors too large for torch to count",
            hint="choose a shorter sequence or a smaller batch",
        )


def shortened(spec: ModelSpec) -> ModelSpec:
    """The model with the first two layers of each kind."""
    pattern = " ".join(spec.order[index] for index in _kept(spec.order))
    encoder = spec.encoder
    if encoder is not None:
        encoder = msgspec.structs.replace(encoder, pattern=" ".join(encoder.order[i] for i in _kept(encoder.order)))
    return msgspec.structs.replace(spec, pattern=pattern, encoder=encoder)


def _kept(order: tuple[str, ...]) -> list[int]:
    return [index for index, name in enumerate(order) if order[:index].count(name) < 2]


def traced_flops(model: Decoder, names: set[str], seq_len: int, batch: int) -> dict[str, int]:
    """FLOPs of one forward pass on meta tensors, by scope: the dotted name of an op, else of a module."""
    scopes = Scopes(model, names)
    found: dict[str, int] = {}
    tokens = torch.zeros((batch, seq_len), dtype=torch.int64, device="meta")
    counter = FlopCounterMode(display=False)
    with _prepared(model, scopes, "standard"), torch.no_grad(), scopes, counter, Attributed(counter, scopes, found):
        run_once(model, tokens)
    return found


def traced_saved_bytes(
    model: Decoder, names: set[str], seq_len: int, batch: int, dtype: torch.dtype, attention: Attention
) -> dict[str, int]:
    """Bytes that one forward pass and its loss save for backward, by scope. The model becomes one of fake tensors."""
    found: dict[str, int] = {}
    with FakeTensorMode():
        materialise(model, device="cpu", dtype=dtype)
        scopes = Scopes(model, names)
        tokens, labels = (torch.zeros((batch, seq_len), dtype=torch.int64) for _ in range(2))
        seen = {t.untyped_storage()._cdata for t in (*model.parameters(), *model.buffers(), labels)}
        packed: list[weakref.ref[_Packed]] = []

        def pack(tensor: Tensor) -> _Packed:
            held = _Packed(tensor, scopes.own)
            packed.append(weakref.ref(held))
            return held

        hooks = torch.autograd.graph.saved_tensors_hooks(pack, lambda held: held.tensor)
        with _prepared(model, scopes, attention), hooks, _AsOnCuda(), scopes:
            logits = run_once(model, tokens)
            with scopes.within("loss"):
                loss = F.cross_entropy(logits.flatten(0, 1).float(), labels.flatten())
        for held in filter(None, (reference() for reference in packed)):
            storage = held.tensor.untyped_storage()
            if storage._cdata not in seen:
                seen.add(storage._cdata)
                where = scopes.outputs.get(storage._cdata, held.scope)
                found[where] = found.get(where, 0) + storage.nbytes()
        del loss  # until here, it held what backward needs
    return found


class _Packed:
    """A tensor that autograd saved; it goes when autograd lets it go."""

    def __init__(self, tensor: Tensor, scope: str) -> None:
        self.tensor, self.scope = tensor, scope


def run_once(model: Decoder, tokens: Tensor) -> Tensor:
    """Logits of tokens [B, S]; an encoder reads the same."""
    logits: Tensor = model(tokens) if model.spec.encoder is None else model(tokens, tokens)
    return logits


@contextmanager
def as_on_cuda(model: Decoder) -> Iterator[None]:
    """Steps of a model on fake tensors inside: experts have even shares, norms keep what CUDA's keep."""
    with _prepared(model, Scopes(model, set()), "standard"), _AsOnCuda():
        yield


class _AsOnCuda(TorchFunctionMode):
    """Norms keep for backward what torch's CUDA kernels keep."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run `func`, norms as one kernel."""
        if func in (F.rms_norm, F.layer_norm):
            given = [*args, *(kwargs or {}).values(), None]
            x, shape, weight = given[:3]
            rows = x.numel() // math.prod(shape)
            statistics = [x.new_empty(rows, dtype=torch.float32) for _ in range(1 if func is F.rms_norm else 2)]
            return _kernel(torch.empty_like, statistics, False, x, weight)
        return func(*args, **(kwargs or {}))


class _Kernel(torch.autograd.Function):
    """A kernel that is only known by what it keeps: its inputs, `also`, and its output where that is kept."""

    @staticmethod
    def forward(
        ctx: Any, made: Callable[[Tensor], Tensor], also: list[Tensor], keeps_output: bool, *inputs: Tensor | None
    ) -> Tensor:
        """The output that `made` makes like the first input."""
        assert inputs[0] is not None
        ctx.inputs = len(inputs)
        out = made(inputs[0])
        ctx.save_for_backward(*inputs, *also, *([out] if keeps_output else []))
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        """Gradients of the inputs' shapes."""
        inputs, needed = ctx.saved_tensors[: ctx.inputs], ctx.needs_input_grad[3:]
        return (
            None,
            None,
            None,
            *(torch.empty_like(x) if need else None for x, need in zip(inputs, needed, strict=True)),
        )


def _kernel(made: Callable[[Tensor], Tensor], also: list[Tensor], keeps_output: bool, *inputs: Tensor | None) -> Tensor:
    out: Tensor = _Kernel.apply(made, also, keeps_output, *inputs)
    return out


def _flash(q: Tensor, seen: Seen, scores: Scores) -> Tensor:
    """What a flash kernel keeps, a trained bias included; its output [B, N, S, Hv] lies in memory as [B, S, N, Hv]."""
    k, v = seen.k, seen.v
    batch, heads, length, _ = q.shape

    def made(like: Tensor) -> Tensor:
        return like.new_empty((batch, length, heads, v.shape[-1])).transpose(1, 2)

    log_sum_exp = q.new_empty((batch, heads, length), dtype=torch.float32)
    trained = scores.bias is not None and scores.bias.requires_grad
    return _kernel(made, [log_sum_exp], True, q, k, v, scores.bias if trained else None)


@contextmanager
def _prepared(model: Decoder, scopes: Scopes, attention: Attention) -> Iterator[None]:
    """The model with a scope for every module, attention and activation, and experts with even shares."""
    attend_by = STANDARD.attend if attention == "standard" else _flash
    normal = model.implementation

    def attend(q: Tensor, seen: Seen, scores: Scores) -> Tensor:
        if scores.bias is not None:
            scopes.output(f"{scopes.here}.relative_bias", scores.bias)
        with scopes.within(f"{scopes.here}.core"):
            return attend_by(q, seen, scores)

    def glu(gate: Tensor, up: Tensor, name: Activation) -> Tensor:
        with scopes.within(f"{scopes.here}.act"):
            return STANDARD.glu(gate, up, name)

    handles = []
    for name, module in model.named_modules():
        if name:
            handles.append(module.register_forward_pre_hook(lambda *_, name=name: scopes.enter(name)))
            handles.append(module.register_forward_hook(lambda *_: scopes.leave()))
        if f"{name}.output" in scopes.names:
            handles.append(module.register_forward_hook(lambda *of, name=name: scopes.output(f"{name}.output", of[-1])))
        if isinstance(module, ExpertsLayer):
            module.rows = _even(module.moe.num_experts)  # type: ignore[method-assign, assignment]
    model.implementation = normal._replace(attend=attend, glu=glu)
    try:
        yield
    finally:
        model.implementation = normal
        for handle in handles:
            handle.remove()
        for module in model.modules():
            if isinstance(module, ExpertsLayer):
                del module.rows


def _even(num_experts: int) -> Callable[[Tensor], list[int]]:
    return lambda choices: even_shares(choices.numel(), num_experts)


def _homes(found: dict[str, int], names: set[str]) -> dict[str, int]:
    """Figures by scope, put to ops: what a module does beside its ops (rotation, gates, sums) is that of the functions
    between them."""
    out: dict[str, int] = {}
    for scope, figure in found.items():
        home = scope if scope in names else next((name for name in _between(scope) if name in names - set(found)), "")
        home = home or scope or "lm_head"
        out[home] = out.get(home, 0) + figure
    return out


def _between(scope: str) -> list[str]:
    """The ops without a module that a scope's own work may be, likeliest first."""
    parent = scope.rpartition(".")[0]
    inside = [f"{scope}.{part}" for part in ("act", "rope", "gate", "scan", "core", "combine", "shared_scale")]
    return [*inside, f"{parent}.combine", f"{scope}.mixer_residual", f"{scope}.ffn_residual"]


def _joined(
    ops: list[Op], spec: ModelSpec, short: ModelSpec, flops: dict[str, int], saved: dict[str, int]
) -> list[TracedOp]:
    """Every op of the model with what was traced of it, then what is no op."""
    stacks = {"decoder": (spec.order, short.order)}
    if spec.encoder is not None and short.encoder is not None:
        stacks["encoder"] = (spec.encoder.order, short.encoder.order)
    used: set[str] = set()
    rows = []
    for op in ops:
        where = [op.name]
        if op.layers:
            order, kept = stacks[op.stack]
            places = [index for index, name in enumerate(kept) if name == op.layer]
            first = order.index(op.layer)
            where = [op.name.replace("{}", str(places[0 if index == first else -1])) for index in op.layers]
        used.update(where)
        rows.append(
            TracedOp(
                name=op.name,
                layer=op.layer,
                instances=op.count,
                recurrent=op.kind == "scan",
                forward_flops=op.count * op.forward_flops,
                traced_flops=_sum(flops, where),
                saved_bytes=op.count * op.saved_bytes,
                traced_saved_bytes=_sum(saved, where),
            )
        )
    for name in sorted((set(flops) | set(saved)) - used):
        rows.append(TracedOp(name, "", 1, False, None, flops.get(name, 0), None, saved.get(name, 0)))
    return rows


def _sum(figures: dict[str, int], names: Iterable[str]) -> int:
    return sum(figures.get(name, 0) for name in names)
