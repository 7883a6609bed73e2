"""Build candidates. A candidate has the call that is timed, the check of its result, the work of the piece (FLOPs and
bytes) and the predicted time."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache, partial
from typing import Any

import torch
from torch import Tensor

from llmbench.bench.correctness import verdicts
from llmbench.bench.experiments.experiment import Group, Pace
from llmbench.bench.extra_candidates import Binder, binder_of, implementation_of, traits_of
from llmbench.bench.extra_candidates.compiled import forget_compiled
from llmbench.bench.pieces.piece import BuiltPiece, Piece, Setting
from llmbench.bench.pieces.reduce import layer_of_each_kind
from llmbench.errors import CannotRunError, LLMBenchError
from llmbench.measure.check_and_time import ADDRESSABLE_BYTES, Candidate
from llmbench.measure.clock import Call
from llmbench.measure.memory import RepeatableBackward
from llmbench.measure.reference import ReferenceMeasurements
from llmbench.measure.results import Scalar
from llmbench.model.implementations.plain import STANDARD
from llmbench.sizing.op import Op
from llmbench.sizing.work import Pass, need_bytes

__all__ = [
    "Entry",
    "call_of",
    "check_direction",
    "entry_group",
    "one_pass",
    "piece_group",
    "same_as_standard",
]


@dataclass(frozen=True, kw_only=True)
class Entry:
    """The description of one candidate: the piece, the setting, and the implementation `impl` that computes the piece.

    `label`: the name of the candidate in its row. `extra`: figures that an experiment adds to the row.
    """

    label: str
    piece: Piece
    setting: Setting
    impl: str
    extra: Mapping[str, Scalar] = field(default_factory=dict)


def piece_group(
    piece: Piece, setting: Setting, impls: Sequence[str], *, case: Mapping[str, Scalar], pace: Pace
) -> Group:
    """Return the group that compares the implementations `impls` on one piece at one setting."""
    entries = [Entry(label=name, piece=piece, setting=setting, impl=name) for name in impls]
    return entry_group(entries, case=case, pace=pace)


def entry_group(entries: Sequence[Entry], *, case: Mapping[str, Scalar], pace: Pace) -> Group:
    """Return the group that compares these entries. Entries with the same piece and the same setting share their inputs
    and weights."""
    return Group(
        case=case,
        names=[entry.label for entry in entries],
        candidates=partial(_candidates, entries),
        pace=pace,
        graphs=all(entry.setting.direction != "backward" for entry in entries),
        attention=any(op.kind == "attention" for entry in entries for op in _ops(entry)),
    )


def _ops(entry: Entry) -> list[Op]:
    """Return the ops that the entry's implementation runs for the entry's piece."""
    return entry.piece.ops(entry.setting, traits_of(entry.impl))


def _candidates(entries: Sequence[Entry], references: ReferenceMeasurements) -> list[Candidate]:
    # torch limits the number of compilations, so drop the compiled code of earlier groups. This happens once per group:
    # all candidates of this group keep their compiled code.
    forget_compiled()
    shared: dict[tuple[int, int], Callable[[], BuiltPiece]] = {}
    candidates = []
    for entry in entries:
        key = id(entry.piece), id(entry.setting)
        built = shared.setdefault(key, cache(partial(entry.piece.build, entry.setting)))
        candidates.append(_candidate(entry, built, references))
    return candidates


def _candidate(entry: Entry, built: Callable[[], BuiltPiece], references: ReferenceMeasurements) -> Candidate:
    piece, setting, name = entry.piece, entry.setting, entry.impl

    @cache
    def bind() -> Binder:
        if same_as_standard(piece, setting, name):
            raise CannotRunError(f"{name} computes {piece.name} exactly as standard does", hint="use standard")
        return binder_of(name)

    must = piece.work(setting)
    ops = _ops(entry)
    need = need_bytes(ops, setting.direction, element_bytes=setting.format.itemsize)
    extra: dict[str, Scalar] = {"bandwidth": piece.bandwidth}
    if (moved := piece.moved_bytes(setting, traits_of(name))) is not None:
        extra["moved_bytes"] = moved
    if need < ADDRESSABLE_BYTES:  # torch cannot create larger tensors, even on the meta device
        sized = piece.build(setting.changed(device=torch.device("meta")))
        extra |= {"input_bytes": sized.nbytes(setting.format)} | dict(sized.extra)
    return Candidate(
        name=entry.label,
        prepare=lambda: call_of(built(), bind()(built().run), setting),
        check=None if name == STANDARD.name else lambda: verdicts(piece, setting, name, bind()),
        # the op table does not count the temporaries that plain torch allocates in each step of a scan
        need_bytes=None if any(op.kind == "scan" for op in ops) else need,
        work_flops=must.flops,
        work_bytes=must.bytes,
        predicted_s=piece.predicted_s(setting, traits_of(name), references.limits(piece.bandwidth)),
        extra=extra | dict(entry.extra),
        compiled=traits_of(name).compiled != "nothing",
    )


def check_direction(piece: Piece, setting: Setting) -> None:
    """Raise LLMBenchError if the setting asks for the backward pass of a decoding piece. Decoding pieces have no
    backward pass."""
    if setting.backward and piece.phase == "decode":
        raise LLMBenchError(
            f"{piece.name}: only --pass forward is supported (a KV cache is inference-only)", hint="--pass forward"
        )


def same_as_standard(piece: Piece, setting: Setting, name: str) -> bool:
    """Return whether the candidate `name` computes the piece only with functions of the implementation `standard`.

    Raises CannotRunError if the candidate cannot run on this machine.
    """
    implementation = implementation_of(name)
    if implementation is STANDARD or implementation.traits.compiled == "piece":
        return False
    return all(getattr(implementation, used) is getattr(STANDARD, used) for used in _functions_used(piece, setting))


def _functions_used(piece: Piece, setting: Setting) -> set[str]:
    """Return the names of the implementation's functions that the piece calls. To find them, run the piece on the meta
    device, with a few tokens and one layer of each kind."""
    recorder = _Recorder()
    small = setting.changed(
        spec=layer_of_each_kind(setting.spec), batch=1, seq_len=min(setting.seq_len, 16), device=torch.device("meta")
    )
    built = piece.build(small)
    built.run(recorder, **built.inputs)
    return recorder.names


class _Recorder:
    """A stand-in for the implementation `standard` that records the name of each function that a piece uses."""

    def __init__(self) -> None:
        self.names: set[str] = set()

    def __getattr__(self, name: str) -> Any:
        self.names.add(name)
        return getattr(STANDARD, name)


def call_of(built: BuiltPiece, run: Callable[..., Any], setting: Setting) -> Call:
    """Return the call that is timed: one pass of the piece. `run(**inputs)` computes the piece's forward pass."""
    weights = built.parameters(setting.format).values() if setting.backward else ()
    return one_pass(run, built.inputs, setting.direction, differentiable=built.differentiable, weights=weights)


def one_pass(
    run: Callable[..., Any],
    inputs: Mapping[str, Any],
    direction: Pass,
    *,
    differentiable: Sequence[str] = (),
    weights: Iterable[Tensor] = (),
) -> Call:
    """Return a call that runs one pass of `run(**inputs)`. `run` returns a tensor or a tuple of tensors.

    `direction` "forward": the forward pass, without saved activations. "backward": only the backward pass; the forward
    pass has already run. "both": the forward pass and then the backward pass. The gradients are those of `weights` and
    of the input tensors that `differentiable` names. The call discards the gradients.
    """
    if direction == "forward":

        def forward() -> object:
            with torch.no_grad():
                return run(**inputs)

        return forward
    arguments = dict(inputs)
    for name in differentiable:
        if isinstance(value := inputs.get(name), Tensor):
            arguments[name] = value.detach().requires_grad_()
    targets = [arguments[name] for name in differentiable if isinstance(arguments.get(name), Tensor)] + list(weights)
    assert targets, "no backward pass to time: neither the inputs nor the weights need gradients"
    grads: list[Tensor] = []

    def outputs() -> list[Tensor]:
        out = run(**arguments)
        return [tensor for tensor in (out if isinstance(out, tuple) else (out,)) if tensor.requires_grad]

    def backward(outs: list[Tensor], again: bool) -> object:
        if not grads:
            grads.extend(torch.randn_like(out) for out in outs)
        return torch.autograd.grad(outs, targets, grads, retain_graph=again, allow_unused=True)

    if direction == "both":
        return lambda: backward(outputs(), again=False)
    return RepeatableBackward(outputs, backward)
