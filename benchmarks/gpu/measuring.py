"""Measure an experiment: check every candidate, time the correct candidates in the same interleaved rounds, and yield
one row per candidate."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cache
from typing import Any

import torch

from benchmarks.gpu.calls import Op, cloned
from benchmarks.gpu.candidates import CandidateKernel, Limit
from benchmarks.gpu.experiments import Experiment
from benchmarks.gpu.machine import Machine, time_box
from llmbench.bench.candidates import one_pass
from llmbench.bench.kernels import inputs_of, work_of
from llmbench.kernels.formats import short
from llmbench.kernels.kernel import describe
from llmbench.kernels.launching import poisoned
from llmbench.kernels.proof.accuracy import Verdict, check_against
from llmbench.measure.check_and_time import Candidate, check_and_time
from llmbench.measure.results import Row, Scalar

__all__ = ["candidates_of", "case_fields", "failed_row", "rows_of"]

NAMED = ("attention", "decode_attention")
"""The kernels for which a candidate can choose between several GPU kernels. Their rows list the GPU kernels that
ran."""


def case_fields(case: Any, dtype: torch.dtype) -> dict[str, Scalar]:
    """Return the fields that describe a case in a row."""
    return {"shape": describe(case), "dtype": short(dtype)}


def failed_row(experiment: str, case: dict[str, Scalar], implementation: str, problem: Exception) -> Row:
    """Return the row of an experiment that could not be set up, or in which an error stopped all candidates."""
    first_line = str(problem).strip().partition("\n")[0]
    reason = f"{type(problem).__name__}: {first_line}"
    return Row(experiment=experiment, case=case, implementation=implementation, status="FAILED", reason=reason)


def rows_of(
    experiment: Experiment, case: Any, names: Sequence[str], machine: Machine, fields: Mapping[str, Scalar]
) -> Iterator[Row]:
    """Yield the rows of one case, one for each of the candidates `names`. `fields` describe the case in the rows."""
    chosen = [candidate for candidate in experiment.candidates if candidate.name in names]
    # If only our kernels run, the names of the GPU kernels say nothing new.
    with_others = any(isinstance(candidate, CandidateKernel) and not candidate.own for candidate in chosen)
    yield from check_and_time(
        candidates_of(experiment, case, names, machine),
        experiment=experiment.name,
        case=fields,
        clock=machine.clock,
        attention=machine.names_kernels and experiment.kernel.name in NAMED and with_others,
        **machine.sampling,
    )


def candidates_of(experiment: Experiment, case: Any, names: Sequence[str], machine: Machine) -> list[Candidate]:
    """Return the candidates `names` of an experiment at one case."""
    check_case = case if machine.rehearsal or experiment.check_case is None else experiment.check_case
    return [
        _limit(candidate, experiment, machine, case)
        if isinstance(candidate, Limit)
        else _candidate(candidate, experiment, machine, case, check_case)
        for candidate in experiment.candidates
        if candidate.name in names
    ]


def _limit(limit: Limit, experiment: Experiment, machine: Machine, case: Any) -> Candidate:
    """Return a limit as a candidate that is timed but not checked."""
    flops, moved = limit.work(case, machine)
    return Candidate(
        name=limit.name,
        prepare=lambda: _prepared(machine, f"{experiment.name}: {limit.name}", lambda: limit.prepare(case, machine)),
        work_flops=flops or None,
        work_bytes=moved or None,
    )


def _candidate(
    kernel: CandidateKernel,
    experiment: Experiment,
    machine: Machine,
    case: Any,
    check_case: Any,
) -> Candidate:
    """Return a kernel as a candidate that is checked and timed."""
    title = f"{experiment.name}: {kernel.name}"
    build = cache(lambda at: kernel.build(at, machine))
    timed_case, checked_case = kernel.variant(case), kernel.variant(check_case)
    flops, moved = work_of(experiment.kernel.cost(timed_case, machine.dtype), experiment.direction)

    def prepare() -> Callable[[], Any]:
        inputs = inputs_of(experiment.kernel, timed_case, 0, machine.dtype, machine.device)
        return one_pass(
            build(timed_case), inputs, experiment.direction, differentiable=experiment.kernel.differentiable
        )

    def check() -> list[Verdict]:
        with time_box(machine.candidate_s, title):
            return _verdicts(kernel, build(checked_case), experiment, checked_case, machine)

    return Candidate(
        name=kernel.name,
        prepare=lambda: _prepared(machine, title, prepare),
        check=check,
        work_flops=flops or None,
        work_bytes=moved or None,
        extra=experiment.extra(timed_case, machine.dtype),
    )


def _prepared(machine: Machine, title: str, prepare: Callable[[], Callable[[], Any]]) -> Callable[[], Any]:
    """Prepare a call, run it once so that its code is compiled, and return it. Raises OutOfTimeError if this takes
    longer than `machine.candidate_s` seconds."""
    with time_box(machine.candidate_s, title):
        call = prepare()
        call()
        return call


def _verdicts(kernel: CandidateKernel, op: Op, experiment: Experiment, case: Any, machine: Machine) -> list[Verdict]:
    """Check the outputs with several random inputs. For a backward pass, also check the gradients. The buffers that our
    kernels allocate are filled with NaN, so that a kernel that does not write all elements is INCORRECT."""
    forward = experiment.direction == "forward"
    verdicts = []
    for seed in range(machine.seeds):
        inputs = inputs_of(experiment.kernel, case, seed, machine.dtype, machine.device)
        run = (lambda **arguments: op(**cloned(arguments))) if kernel.overwrites_inputs else op
        with torch.set_grad_enabled(not forward), poisoned():
            verdicts += check_against(
                run,
                experiment.kernel.reference,
                inputs,
                differentiable=() if forward else experiment.kernel.differentiable,
                seed=seed,
                factor=kernel.factor,
            )
    return verdicts
