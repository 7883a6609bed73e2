"""One way to compute a piece, as the gate checks and times it: its call, its check, its work, its prediction."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache, partial
from typing import Any

import torch
from torch import Tensor

from llmbench.bench.experiment import Group, Pace
from llmbench.bench.setting import Made, Piece, Setting
from llmbench.errors import LLMBenchError, UnknownNameError, suggestion
from llmbench.kernels.accuracy import Verdict, held
from llmbench.measure.anchors import Anchors
from llmbench.measure.clock import Call
from llmbench.measure.gate import Rival
from llmbench.measure.results import Scalar
from llmbench.model.describe import first_layers
from llmbench.model.implementations import IMPLEMENTATIONS, implementation
from llmbench.model.implementations.plain import STANDARD
from llmbench.sizing.work import least_s, need_bytes, work

__all__ = ["COMPILED", "call_of", "check_passes", "known_name", "piece_group", "verdicts", "way_of"]

TORCH_FACTOR = 4.0
"""How much further from the exact result than plain torch its other kernels may be: they sum in other orders, which
shows in fp32. Ours have 2."""

COMPILED = "compiled"
"""A rival beside the implementations: plain torch through torch.compile."""


def piece_group(
    piece: Piece,
    setting: Setting,
    names: Sequence[str],
    *,
    experiment: str,
    case: dict[str, Scalar],
    pace: Pace = Pace(),
) -> Group:
    """The ways of these names to compute a piece, as a group. Inputs and weights are made once for all of them."""
    return Group(
        experiment=experiment,
        case=case,
        names=names,
        rivals=partial(_rivals, piece, setting, names),
        pace=pace,
        graphs=setting.of != "backward",
        attention=piece.name in ("attention", "decode", "mla"),
    )


def _rivals(piece: Piece, setting: Setting, names: Sequence[str], anchors: Anchors) -> list[Rival]:
    made = cache(partial(piece.make, setting))
    return [_rival(piece, setting, name, made, anchors) for name in names]


def _rival(piece: Piece, setting: Setting, name: str, made: Callable[[], Made], anchors: Anchors) -> Rival:
    way = cache(partial(way_of, name))
    ops = piece.ops(setting, STANDARD.name if name == COMPILED else name)
    must = work(piece.ops_of(setting), setting.of)
    limits = anchors.limits(read_only=piece.phase == "decode")
    return Rival(
        name=name,
        prepare=lambda: call_of(made(), way(), setting),
        check=None if name == STANDARD.name else lambda: verdicts(piece, setting, name, way()),
        need_bytes=need_bytes(ops, setting.of, activation_bytes=setting.format.itemsize),
        work_flops=must.flops,
        work_bytes=must.bytes,
        predicted_s=least_s(ops, setting.of, limits.least_s),
        figures={"input_bytes": piece.make(setting.but(device=torch.device("meta"))).nbytes},
    )


def known_name(name: str) -> None:
    """Raise UnknownNameError unless a way to compute has that name."""
    known = (*IMPLEMENTATIONS, COMPILED)
    if name not in known:
        near = suggestion(name, known)
        hint = (f"did you mean `{near}`? " if near else "") + f"there is {', '.join(known)}"
        raise UnknownNameError(f"no implementation `{name}`", hint=hint)


def check_passes(piece: Piece, setting: Setting) -> None:
    """Raise LLMBenchError where a pass is asked for that the piece does not have."""
    if setting.backward and piece.phase == "decode":
        raise LLMBenchError(f"{piece.name} has no backward pass: nobody trains on a cache", hint="--pass forward")


Way = Callable[[Callable[..., Any]], Callable[..., Any]]
"""Makes a piece's `run(implementation, **inputs)` into `run(**inputs)`."""


def way_of(name: str) -> Way:
    """The way of that name: an implementation's, or plain torch compiled."""
    if name != COMPILED:
        chosen = implementation(name)
        return lambda run: partial(run, chosen)

    def compiled(run: Callable[..., Any]) -> Callable[..., Any]:
        torch._dynamo.reset()
        return torch.compile(partial(run, STANDARD), dynamic=False)

    return compiled


def call_of(made: Made, way: Way, setting: Setting) -> Call:
    """What is timed: a forward pass, the backward pass of one, or both. Gradients are not kept."""
    run, inputs = way(made.run), dict(made.inputs)
    if setting.of == "forward":

        def forward() -> object:
            with torch.no_grad():
                return run(**inputs)

        return forward
    leaves = [inputs[name].detach().requires_grad_() for name in made.differentiable]
    inputs |= dict(zip(made.differentiable, leaves, strict=True))
    wanted = [*leaves, *made.parameters]
    assert wanted, "nothing here has gradients"
    grads: dict[str, list[Tensor]] = {}

    def outputs() -> list[Tensor]:
        out = run(**inputs)
        return [each for each in (out if isinstance(out, tuple) else (out,)) if each.requires_grad]

    def backward(outs: list[Tensor], *, again: bool) -> object:
        if "of" not in grads:
            grads["of"] = [torch.randn_like(out) for out in outs]
        return torch.autograd.grad(outs, wanted, grads["of"], retain_graph=again, allow_unused=True)

    if setting.of == "both":
        return lambda: backward(outputs(), again=False)
    kept = outputs()
    return lambda: backward(kept, again=True)


def verdicts(piece: Piece, setting: Setting, name: str, way: Way) -> list[Verdict]:
    """The piece computed that way at a size with room for fp64, held against plain torch."""
    layers = min(2, setting.spec.num_hidden_layers)
    small = setting.but(spec=first_layers(setting.spec, layers), batch=1, seq_len=min(setting.seq_len, piece.check_seq))
    made = piece.make(small)
    ours = name in ("flash", "fused") and setting.device.type == "cuda"
    return held(
        way(made.run),
        partial(made.run, STANDARD),
        made.inputs,
        differentiable=made.differentiable if setting.backward else (),
        factor=2.0 if ours else TORCH_FACTOR,
    )
