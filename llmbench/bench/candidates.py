"""One way to compute a piece, as the gate times it: its call, its work, its prediction. `checking` has its check."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache, partial
from typing import Any

import torch

from llmbench.bench.autograd import one_pass
from llmbench.bench.baselines import FLEX, WAYS
from llmbench.bench.compiling import compiled, forget_compiled
from llmbench.bench.correctness import verdicts
from llmbench.bench.experiments.experiment import Group, Pace
from llmbench.bench.pieces.piece import Made, Piece, Setting
from llmbench.bench.pieces.reduce import layer_of_each_kind
from llmbench.errors import CannotRunError, LLMBenchError, unknown
from llmbench.measure.check_and_time import ADDRESSABLE_BYTES, Candidate
from llmbench.measure.clock import Call
from llmbench.measure.reference import ReferenceMeasurements
from llmbench.measure.results import Scalar
from llmbench.model.implementations import IMPLEMENTATIONS, implementation
from llmbench.model.implementations.interface import Implementation
from llmbench.model.implementations.plain import STANDARD
from llmbench.sizing.work import need_bytes

__all__ = [
    "COMPILED",
    "Entry",
    "alike",
    "call_of",
    "check_passes",
    "entry_group",
    "implementation_of",
    "known_name",
    "piece_group",
    "way_of",
]

COMPILED = "compiled"
"""A rival beside the implementations: plain torch through torch.compile."""


@dataclass(frozen=True, kw_only=True)
class Entry:
    """A row to be: a piece at a setting computed in the way named `impl`, by the name `label`; `figures` are what an
    experiment adds to it."""

    label: str
    piece: Piece
    setting: Setting
    impl: str
    figures: Mapping[str, Scalar] = field(default_factory=dict)


def piece_group(
    piece: Piece, setting: Setting, names: Sequence[str], *, experiment: str, case: Mapping[str, Scalar], pace: Pace
) -> Group:
    """The ways of these names to compute one piece, as a group."""
    entries = [Entry(label=name, piece=piece, setting=setting, impl=name) for name in names]
    return entry_group(entries, experiment=experiment, case=case, pace=pace)


def entry_group(entries: Sequence[Entry], *, experiment: str, case: Mapping[str, Scalar], pace: Pace) -> Group:
    """Entries as a group. Those of one piece at one setting share inputs and weights."""
    return Group(
        experiment=experiment,
        case=case,
        names=[entry.label for entry in entries],
        rivals=partial(_rivals, entries),
        pace=pace,
        graphs=all(entry.setting.of != "backward" for entry in entries),
        attention=any(op.kind == "attention" for entry in entries for op in entry.piece.ops(entry.setting, entry.impl)),
    )


def _rivals(entries: Sequence[Entry], references: ReferenceMeasurements) -> list[Candidate]:
    forget_compiled()  # of other groups; what this one compiles stays until all of it is timed
    shared: dict[tuple[int, int], Callable[[], Made]] = {}
    found = []
    for entry in entries:
        what = id(entry.piece), id(entry.setting)
        made = shared.setdefault(what, cache(partial(entry.piece.make, entry.setting)))
        found.append(_rival(entry, made, references))
    return found


def _rival(entry: Entry, made: Callable[[], Made], references: ReferenceMeasurements) -> Candidate:
    piece, setting, name = entry.piece, entry.setting, entry.impl

    @cache
    def way() -> Way:
        if alike(piece, setting, name):
            raise CannotRunError(f"{name} computes nothing of {piece.name} in a way of its own", hint="use standard")
        return way_of(name)

    impl = STANDARD.name if name == COMPILED else name
    must = piece.work(setting)
    limits = references.limits(piece.bandwidth)
    ops = piece.ops(setting, impl)
    need = need_bytes(ops, setting.of, element_bytes=setting.format.itemsize)
    figures: dict[str, Scalar] = {"bandwidth": piece.bandwidth}
    if need < ADDRESSABLE_BYTES:  # what has more cannot even be described to torch
        sized = piece.make(setting.but(device=torch.device("meta")))
        figures |= {"input_bytes": sized.nbytes(setting.format)} | dict(sized.found)
    return Candidate(
        name=entry.label,
        prepare=lambda: call_of(made(), way(), setting),
        check=None if name == STANDARD.name else lambda: verdicts(piece, setting, name, way()),
        # what plain torch holds of a scan, step by step, the table does not know
        need_bytes=None if any(op.kind == "scan" for op in ops) else need,
        work_flops=must.flops,
        work_bytes=must.bytes,
        predicted_s=piece.predicted_s(setting, impl, limits),
        extra=figures | dict(entry.figures),
        compiled=name in (COMPILED, FLEX),
    )


def known_name(name: str) -> None:
    """Raise UnknownNameError unless a way to compute has that name."""
    known = tuple(dict.fromkeys((*IMPLEMENTATIONS, COMPILED, *WAYS)))
    if name not in known:
        raise unknown("implementation", name, known)


def check_passes(piece: Piece, setting: Setting) -> None:
    """Raise LLMBenchError where a pass is asked for that the piece does not have."""
    if setting.backward and piece.phase == "decode":
        raise LLMBenchError(f"{piece.name} has no backward pass: nobody trains on a cache", hint="--pass forward")


Way = Callable[[Callable[..., Any]], Callable[..., Any]]
"""Makes a piece's `run(implementation, **inputs)` into `run(**inputs)`."""


def way_of(name: str) -> Way:
    """The way of that name: an implementation's, or plain torch compiled."""
    if name == COMPILED:
        return lambda run: compiled(partial(run, STANDARD))
    chosen = implementation_of(name)
    return lambda run: partial(run, chosen)


def implementation_of(name: str) -> Implementation:
    """The functions of that name."""
    return WAYS[name]() if name in WAYS else implementation(name)


def alike(piece: Piece, setting: Setting, name: str) -> bool:
    """Whether that way is plain torch by another name: whether all that the piece asks of an implementation is plain
    torch's in it. Raises CannotRunError where there is no such implementation here."""
    if name in (STANDARD.name, COMPILED):
        return False
    its = implementation_of(name)
    return all(getattr(its, each) is getattr(STANDARD, each) for each in _asked(piece, setting))


def _asked(piece: Piece, setting: Setting) -> set[str]:
    """What the piece asks of an implementation, found on a few tokens of a layer of each kind, which take no time."""
    few, asked = min(setting.seq_len, 16), _Asked()
    at = setting.but(spec=layer_of_each_kind(setting.spec), batch=1, seq_len=few, device=torch.device("meta"))
    made = piece.make(at)
    made.run(asked, **made.inputs)
    return asked.names


class _Asked:
    """Plain torch, and which of its functions were asked for."""

    def __init__(self) -> None:
        self.names: set[str] = set()

    def __getattr__(self, name: str) -> Any:
        self.names.add(name)
        return getattr(STANDARD, name)


def call_of(made: Made, way: Way, setting: Setting) -> Call:
    """What is timed: a pass of the piece in that way."""
    weights = made.parameters(setting.format).values() if setting.backward else ()
    return one_pass(way(made.run), made.inputs, setting.of, differentiable=made.differentiable, weights=weights)
