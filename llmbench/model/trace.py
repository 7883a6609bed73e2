"""Traces of a model: the FLOPs and saved bytes of a forward pass, op by op.

A trace needs no GPU and no memory for tensors.

torch's FlopCounterMode counts FLOPs on meta tensors. It also counts masked score pairs, so the trace is compared with
an op table that includes these pairs.

Saved bytes are the bytes of the tensors that autograd keeps for the backward pass, after the loss is computed. The
trace runs the model on fake tensors, and saved_tensors_hooks find these tensors. Each storage counts once, for the op
that saved it first. Parameters do not count. Saved bytes are compared with an op table for "eager" kernels.

The trace differs from a real forward pass:

- Only the first two layers of each kind are traced. The figures of the second layer count for all later layers of its
  kind.
- Each expert gets an equal share of the rows, because a router cannot select experts without values.
- FLOPs are counted with `standard` attention, which can compute every model.
- With "flash", attention saves the tensors that a flash kernel saves: q, k, v, the output and an fp32 log-sum-exp.
- Norms save their input and fp32 statistics, like torch's CUDA kernels. On a CPU, some norms save more.

Dimensions: B batch, N query heads, K KV heads, S query length, T key length, H head dim, Hv value head dim.
"""

from __future__ import annotations

import math
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Literal, NamedTuple, get_args

import msgspec
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode
from torch.utils.flop_counter import FlopCounterMode

from llmbench.errors import SpecError
from llmbench.model.attention_experts import ProjectionExperts
from llmbench.model.create import build, materialise
from llmbench.model.decoder import Decoder
from llmbench.model.ffn import ExpertsLayer, even_shares
from llmbench.model.formats import DTYPES, Format
from llmbench.model.implementations.interface import Scores, Seen
from llmbench.model.implementations.plain import STANDARD
from llmbench.model.scopes import FlopsByScope, Scopes
from llmbench.sizing.lengths import refuse_beyond_positions
from llmbench.sizing.lower import lower
from llmbench.sizing.memory import widest_bytes
from llmbench.sizing.op import Op, Role
from llmbench.sizing.workload import Workload
from llmbench.spec.ffn import Activation
from llmbench.spec.model import ModelSpec

Attention = Literal["flash", "standard"]

LARGEST_BYTES = 2**60
"""The most bytes per op in a trace. torch counts the bytes of a tensor in 64 bits, even on meta."""


class TracedOp(NamedTuple):
    """The analytic and the traced figures of one op, summed over its layers.

    - `forward_flops`, `saved_bytes`: the figures of the op table. None for traced work that belongs to no op.
    - `traced_flops`, `traced_saved_bytes`: the figures of the trace.
    - `recurrent`: the op is a recurrence. The op table counts it token by token, but torch computes it in chunks or
      scans.
    """

    name: str
    layer: str
    instances: int
    recurrent: bool
    forward_flops: int | None
    traced_flops: int
    saved_bytes: int | None
    traced_saved_bytes: int


class Trace(NamedTuple):
    """The figures of all ops, and the number of layers that were traced."""

    ops: list[TracedOp]
    layers_traced: int


def trace(
    spec: ModelSpec, *, seq_len: int, batch: int = 1, dtype: Format = "bf16", attention: Attention = "flash"
) -> Trace:
    """Trace the forward pass and the loss of one training step.

    Raises UnsupportedError for a spec that cannot be built, SpecError for sequences that are too long for the model or
    for torch's 64-bit counts.
    """
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
    roles = {name: op.role for op in lower(short, work) for name in op.names()}
    names = set(roles)
    model = build(short, impl="standard", device="meta", dtype=DTYPES[dtype])
    flops = _by_op(traced_flops(model, names, seq_len, batch), roles)
    saved = _by_op(traced_saved_bytes(model, names, seq_len, batch, DTYPES[dtype], attention), roles)
    return Trace(_joined(lower(spec, work), spec, short, flops, saved), len(short.order))


def refuse_beyond_counting(spec: ModelSpec, seq_len: int, batch: int) -> None:
    """Raise SpecError if an op needs more than LARGEST_BYTES, with attention that materialises its scores."""
    work = Workload.prefill(seq_len, batch, attention="standard", activation_dtype="fp32")
    if widest_bytes(lower(spec, work)) > LARGEST_BYTES:
        raise SpecError(
            f"{spec.name}: the tensors of {batch:,} × {seq_len:,} tokens are too large for torch to count",
            hint="choose a shorter sequence or a smaller batch",
        )


def shortened(spec: ModelSpec) -> ModelSpec:
    """Return a spec that keeps only the first two layers of each kind."""
    pattern = " ".join(spec.order[index] for index in _first_two(spec.order))
    encoder = spec.encoder
    if encoder is not None:
        encoder = msgspec.structs.replace(
            encoder, pattern=" ".join(encoder.order[i] for i in _first_two(encoder.order))
        )
    return msgspec.structs.replace(spec, pattern=pattern, encoder=encoder)


def _first_two(order: tuple[str, ...]) -> list[int]:
    """Return the indices of the first two layers of each kind."""
    return [index for index, name in enumerate(order) if order[:index].count(name) < 2]


def traced_flops(model: Decoder, names: set[str], seq_len: int, batch: int) -> dict[str, int]:
    """Return the FLOPs of one forward pass on meta tensors, by scope.

    A scope is the dotted name of an op. For a module without an op, it is the dotted name of the module.
    """
    scopes = Scopes(model, names)
    flops: dict[str, int] = {}
    tokens = torch.zeros((batch, seq_len), dtype=torch.int64, device="meta")
    counter = FlopCounterMode(display=False)
    with prepared(model, scopes, "standard"), torch.no_grad(), scopes, counter, FlopsByScope(counter, scopes, flops):
        run_once(model, tokens)
    return flops


def traced_saved_bytes(
    model: Decoder, names: set[str], seq_len: int, batch: int, dtype: torch.dtype, attention: Attention
) -> dict[str, int]:
    """Return the bytes that a forward pass and its loss save for the backward pass, by scope.

    Replaces the model's tensors by fake tensors.
    """
    saved_bytes: dict[str, int] = {}
    with FakeTensorMode():
        materialise(model, device="cpu", dtype=dtype)
        scopes = Scopes(model, names)
        tokens, labels = (torch.zeros((batch, seq_len), dtype=torch.int64) for _ in range(2))
        counted = {t.untyped_storage()._cdata for t in (*model.parameters(), *model.buffers(), labels)}
        references: list[weakref.ref[_Saved]] = []

        def pack(tensor: Tensor) -> _Saved:
            saved = _Saved(tensor, scopes.own)
            references.append(weakref.ref(saved))
            return saved

        hooks = torch.autograd.graph.saved_tensors_hooks(pack, lambda saved: saved.tensor)
        with prepared(model, scopes, attention), hooks, CudaNorms(), scopes:
            logits = run_once(model, tokens)
            with scopes.within("loss"):
                loss = F.cross_entropy(logits.flatten(0, 1).float(), labels.flatten())
        for saved in filter(None, (reference() for reference in references)):
            storage = saved.tensor.untyped_storage()
            if storage._cdata not in counted:
                counted.add(storage._cdata)
                scope = scopes.outputs.get(storage._cdata, saved.scope)
                saved_bytes[scope] = saved_bytes.get(scope, 0) + storage.nbytes()
        del loss  # The loss kept the autograd graph and its saved tensors alive until here.
    return saved_bytes


class _Saved:
    """A tensor that autograd saved, and its scope. Autograd deletes the object when it frees the tensor."""

    def __init__(self, tensor: Tensor, scope: str) -> None:
        self.tensor, self.scope = tensor, scope


def run_once(model: Decoder, tokens: Tensor) -> Tensor:
    """Return the logits for tokens [B, S]. The encoder of an encoder-decoder gets the same tokens."""
    logits: Tensor = model(tokens) if model.spec.encoder is None else model(tokens, tokens)
    return logits


class CudaNorms(TorchFunctionMode):
    """A mode in which norms save the same tensors for the backward pass as torch's CUDA kernels."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run `func`. A norm is replaced by a `_Kernel` that saves the norm's inputs and statistics."""
        if func in (F.rms_norm, F.layer_norm):
            x, shape, weight = [*args, *(kwargs or {}).values(), None][:3]
            rows = x.numel() // math.prod(shape)
            statistics = [x.new_empty(rows, dtype=torch.float32) for _ in range(1 if func is F.rms_norm else 2)]
            return _kernel(torch.empty_like, statistics, False, x, weight)
        return func(*args, **(kwargs or {}))


class _Kernel(torch.autograd.Function):
    """A kernel that computes nothing.

    It only saves tensors: its inputs, `statistics`, and its output if `saves_output`.
    """

    @staticmethod
    def forward(
        ctx: Any,
        empty_output: Callable[[Tensor], Tensor],
        statistics: list[Tensor],
        saves_output: bool,
        *inputs: Tensor | None,
    ) -> Tensor:
        """Return the uninitialised output that `empty_output` creates from the first input."""
        assert inputs[0] is not None
        ctx.inputs = len(inputs)
        out = empty_output(inputs[0])
        ctx.save_for_backward(*inputs, *statistics, *([out] if saves_output else []))
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        """Return uninitialised gradients of the inputs that need a gradient."""
        inputs, needed = ctx.saved_tensors[: ctx.inputs], ctx.needs_input_grad[3:]
        return (
            None,
            None,
            None,
            *(torch.empty_like(x) if need else None for x, need in zip(inputs, needed, strict=True)),
        )


def _kernel(
    empty_output: Callable[[Tensor], Tensor], statistics: list[Tensor], saves_output: bool, *inputs: Tensor | None
) -> Tensor:
    out: Tensor = _Kernel.apply(empty_output, statistics, saves_output, *inputs)
    return out


def _flash(q: Tensor, seen: Seen, scores: Scores) -> Tensor:
    """Replace a flash attention kernel. Computes nothing, and saves what the kernel saves for the backward pass.

    The saved tensors are q, k, v, the output, the log-sum-exp, and the position bias if the bias is trained.

    The output [B, N, S, Hv] is stored as [B, S, N, Hv].
    """
    k, v = seen.k, seen.v
    batch, heads, length, _ = q.shape

    def empty_output(like: Tensor) -> Tensor:
        return like.new_empty((batch, length, heads, v.shape[-1])).transpose(1, 2)

    log_sum_exp = q.new_empty((batch, heads, length), dtype=torch.float32)
    trained = scores.bias is not None and scores.bias.requires_grad
    return _kernel(empty_output, [log_sum_exp], True, q, k, v, scores.bias if trained else None)


@contextmanager
def prepared(model: Decoder, scopes: Scopes, attention: Attention) -> Iterator[None]:
    """Prepare a model for a trace, in a `with` block.

    Each module, each attention and each activation gets a scope. Each expert gets an equal share of the rows.
    """
    attend_with = STANDARD.attend if attention == "standard" else _flash
    usual = model.implementation

    def attend(q: Tensor, seen: Seen, scores: Scores) -> Tensor:
        if scores.bias is not None:
            scopes.output(f"{scopes.innermost}.relative_bias", scores.bias)
        with scopes.within(f"{scopes.innermost}.core"):
            return attend_with(q, seen, scores)

    def glu(gate: Tensor, up: Tensor, name: Activation) -> Tensor:
        with scopes.within(f"{scopes.innermost}.act"):
            return STANDARD.glu(gate, up, name)

    handles = []
    for name, module in model.named_modules():
        if name:
            handles.append(module.register_forward_pre_hook(lambda *_, name=name: scopes.enter(name)))
            handles.append(module.register_forward_hook(lambda *_: scopes.leave()))
        if f"{name}.output" in scopes.names:
            handles.append(
                module.register_forward_hook(lambda *call, name=name: scopes.output(f"{name}.output", call[-1]))
            )
        if isinstance(module, (ExpertsLayer, ProjectionExperts)):
            module.rows = _even_rows(module.num_experts)  # type: ignore[method-assign, assignment]
    model.implementation = usual._replace(attend=attend, glu=glu)
    try:
        yield
    finally:
        model.implementation = usual
        for handle in handles:
            handle.remove()
        for module in model.modules():
            if isinstance(module, (ExpertsLayer, ProjectionExperts)):
                del module.rows


def _even_rows(num_experts: int) -> Callable[[Tensor], list[int]]:
    """Return a replacement of the method `rows` of experts that gives each expert an equal share."""
    return lambda choices: even_shares(choices.numel(), num_experts)


def _by_op(by_scope: dict[str, int], roles: Mapping[str, Role | None]) -> dict[str, int]:
    """Convert figures by scope to figures by op. `roles`: the role of each op, by name.

    A scope is an op or a module. A module also does work outside its child modules, such as rotation, gates and sums.
    This work belongs to an op that has no module.
    """
    figures: dict[str, int] = {}
    for scope, figure in by_scope.items():
        unused = {name: role for name, role in roles.items() if role is not None and name not in by_scope}
        op = scope if scope in roles else next(iter(_ops_without_module(scope, unused)), "")
        op = op or scope or "lm_head"
        figures[op] = figures.get(op, 0) + figure
    return figures


def _ops_without_module(scope: str, roles: Mapping[str, Role]) -> list[str]:
    """Return those of these ops that the module `scope` may have run outside its child modules, the most likely op
    first.

    The experts of a mixture also run the `combine` of the mixture around them.
    """
    inside = [name for name in roles if name.rpartition(".")[0] == scope]
    parent = scope.rpartition(".")[0]
    around = [name for name, role in roles.items() if role == "combine" and name.rpartition(".")[0] == parent]
    return sorted([*inside, *around], key=lambda name: get_args(Role).index(roles[name]))


def _joined(
    ops: list[Op], spec: ModelSpec, short: ModelSpec, flops: dict[str, int], saved: dict[str, int]
) -> list[TracedOp]:
    """Return all ops of the model with their traced figures, followed by traced work that belongs to no op."""
    stacks = {"decoder": (spec.order, short.order)}
    if spec.encoder is not None and short.encoder is not None:
        stacks["encoder"] = (spec.encoder.order, short.encoder.order)
    used: set[str] = set()
    rows = []
    for op in ops:
        instances = [op.name]
        if op.layers:
            order, short_order = stacks[op.stack]
            traced_layers = [index for index, name in enumerate(short_order) if name == op.layer]
            first = order.index(op.layer)
            instances = [op.name.replace("{}", str(traced_layers[0 if index == first else -1])) for index in op.layers]
        used.update(instances)
        rows.append(
            TracedOp(
                name=op.name,
                layer=op.layer,
                instances=op.count,
                recurrent=op.kind == "scan",
                forward_flops=op.count * op.forward_flops,
                traced_flops=_sum(flops, instances),
                saved_bytes=op.count * op.saved_bytes,
                traced_saved_bytes=_sum(saved, instances),
            )
        )
    for name in sorted((set(flops) | set(saved)) - used):
        rows.append(TracedOp(name, "", 1, False, None, flops.get(name, 0), None, saved.get(name, 0)))
    return rows


def _sum(figures: dict[str, int], names: Iterable[str]) -> int:
    return sum(figures.get(name, 0) for name in names)
