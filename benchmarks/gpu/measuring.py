"""From an experiment to rows: every contender is checked, those that pass are timed in the same interleaved rounds."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cache
from typing import Any

import torch

from benchmarks.gpu.calls import Op, cloned, inputs_of, work_of
from benchmarks.gpu.contenders import Bound, Contender
from benchmarks.gpu.experiments import Experiment
from benchmarks.gpu.machine import Machine, time_box
from llmbench.bench.candidates import one_pass
from llmbench.kernels.formats import short
from llmbench.kernels.kernel import describe
from llmbench.kernels.launching import poisoned
from llmbench.kernels.proof.accuracy import Verdict, check_against
from llmbench.measure.check_and_time import Candidate, check_and_time
from llmbench.measure.results import Row, Scalar

__all__ = ["LEAST_S", "broken", "case_of", "rivals_of", "rows_of"]

LEAST_S = 10.0
"""What is left when no further case is begun."""

NAMED = ("attention", "decode_attention")
"""Where rivals choose among kernels: rows say which really ran."""


def case_of(case: Any, dtype: torch.dtype) -> dict[str, Scalar]:
    """A case as it stands in a row."""
    return {"shape": describe(case), "dtype": short(dtype)}


def broken(experiment: str, case: dict[str, Scalar], implementation: str, problem: Exception) -> Row:
    """The row of what could not even be set up, or took all its contenders with it."""
    first = str(problem).strip().partition("\n")[0]
    reason = f"{type(problem).__name__}: {first}"
    return Row(experiment=experiment, case=case, implementation=implementation, status="FAILED", reason=reason)


def rows_of(experiment: Experiment, machine: Machine, left_s: Callable[[], float]) -> Iterator[Row]:
    """The rows of all cases. One that is not begun, because less than `LEAST_S` seconds are left, is a row "n/a"."""
    for case, rivals in rivals_of(experiment, machine):
        about = case_of(case, machine.dtype)
        if left_s() < LEAST_S:
            first, reason = rivals[0].name, "no time was left"
            yield Row(experiment=experiment.name, case=about, implementation=first, status="n/a", reason=reason)
            continue
        yield from check_and_time(
            rivals,
            experiment=experiment.name,
            case=about,
            clock=machine.clock,
            attention=machine.names_kernels and experiment.kernel.name in NAMED,
            **machine.sampling,
        )
        machine.forget()


def rivals_of(experiment: Experiment, machine: Machine) -> Iterator[tuple[Any, list[Candidate]]]:
    """The contenders of each case, ready for the gate. Cases that share a gate are held to it once."""
    known: dict[str, list[Verdict]] = {}
    for case in [experiment.tiny] if machine.rehearsal else experiment.cases:
        gate = case if machine.rehearsal or experiment.gate is None else experiment.gate
        if gate is case:
            known = {}
        yield case, [_rival(each, experiment, machine, case, gate, known) for each in experiment.contenders]


def _rival(
    each: Contender | Bound, of: Experiment, machine: Machine, case: Any, gate: Any, known: dict[str, list[Verdict]]
) -> Candidate:
    what = f"{of.name}: {each.name}"
    if isinstance(each, Bound):
        flops, moved = each.work(case, machine)
        return Candidate(
            name=each.name,
            prepare=lambda: _ready(machine, what, lambda: each.prepare(case, machine)),
            work_flops=flops or None,
            work_bytes=moved or None,
        )
    built = cache(lambda at: each.build(at, machine))
    ran, checked = each.variant(case), each.variant(gate)
    flops, moved = work_of(of.kernel.cost(ran, machine.dtype), of.way)

    def prepare() -> Callable[[], Any]:
        inputs = inputs_of(of.kernel, ran, 0, machine.dtype, machine.device)
        return one_pass(built(ran), inputs, of.way, differentiable=of.kernel.differentiable)

    def check() -> list[Verdict]:
        if each.name not in known:
            with time_box(machine.rival_s, what):
                known[each.name] = _verdicts(each, built(checked), of, checked, machine)
        return known[each.name]

    return Candidate(
        name=each.name,
        prepare=lambda: _ready(machine, what, prepare),
        check=check,
        work_flops=flops or None,
        work_bytes=moved or None,
        extra=of.figures(ran, machine.dtype),
    )


def _ready(machine: Machine, what: str, prepare: Callable[[], Callable[[], Any]]) -> Callable[[], Any]:
    """A call that has run once, so that compilers are done with it, within its time."""
    with time_box(machine.rival_s, what):
        call = prepare()
        call()
        return call


def _verdicts(each: Contender, op: Op, of: Experiment, case: Any, machine: Machine) -> list[Verdict]:
    """Outputs, and gradients of a backward pass, over several seeds; buffers of ours start as NaN."""
    forward = of.way == "forward"
    found = []
    for seed in range(machine.seeds):
        inputs = inputs_of(of.kernel, case, seed, machine.dtype, machine.device)
        run = (lambda **given: op(**cloned(given))) if each.scribbles else op
        with torch.set_grad_enabled(not forward), poisoned():
            found += check_against(
                run,
                of.kernel.reference,
                inputs,
                differentiable=() if forward else of.kernel.differentiable,
                seed=seed,
                factor=each.factor,
            )
    return found
