"""The jobs of a run, and their order. A job measures some candidates of one experiment at one case, or ranks the
configurations of a kernel."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, NamedTuple

import torch

from benchmarks.gpu import measuring, tuning
from benchmarks.gpu.candidates import CandidateKernel, Limit
from benchmarks.gpu.compiling import recorded
from benchmarks.gpu.experiments import Experiment
from benchmarks.gpu.goals import REFERENCES
from benchmarks.gpu.machine import Machine
from llmbench.kernels.kernel import Kernel
from llmbench.kernels.launching import Launch
from llmbench.measure.check_and_time import Candidate
from llmbench.measure.results import Row, Scalar

__all__ = ["Assembler", "Choose", "Job", "first_steps", "full_steps", "tuning_steps"]

DTYPE = torch.bfloat16
"""The number format of all experiments."""


class Assembler(NamedTuple):
    """An assembler `ptxas`. `path`: its file; None means the assembler that Triton chooses by itself."""

    version: str
    path: str | None

    @property
    def environment(self) -> dict[str, str]:
        """The environment variables that make Triton use this assembler. Which of the two variables counts for a GPU
        depends on the release of Triton."""
        return dict.fromkeys(("TRITON_PTXAS_PATH", "TRITON_PTXAS_BLACKWELL_PATH"), self.path) if self.path else {}


@dataclass(frozen=True, kw_only=True)
class Job:
    """One comparison. `title` and `case` are the experiment and the case of its rows.

    - `family`: jobs of the same family may share a child process.
    - `names`: the candidates. The first one is our kernel, or the shipped configuration.
    - `rows(machine, names)` measures the candidates `names` and yields their rows.
    - `launches(arch)` returns the Triton launches of our kernel, to compile them ahead.
    - `compiled(machine)` returns the candidates that torch.compile has to compile. `has_compiled`: whether there are
      any.
    - `assembler`: the assembler for Triton's kernels.
    """

    title: str
    family: str
    case: dict[str, Scalar]
    names: tuple[str, ...]
    rows: Callable[[Machine, Sequence[str]], Iterator[Row]]
    launches: Callable[[int], Iterable[Launch]]
    compiled: Callable[[Machine], list[Candidate]] = lambda machine: []
    has_compiled: bool = False
    assembler: Assembler | None = None

    def under(self, assembler: Assembler) -> Job:
        """Return the same job with this assembler, whose version becomes a field of the case."""
        case = {**self.case, "ptxas": assembler.version}

        def rows(machine: Machine, names: Sequence[str]) -> Iterator[Row]:
            for row in self.rows(machine, names):
                yield Row(**{name: getattr(row, name) for name in row.__struct_fields__} | {"case": case})

        return replace(self, case=case, rows=rows, assembler=assembler)


Choose = Callable[[CandidateKernel | Limit], bool]
"""Whether a candidate takes part. Our kernel always does."""


def _job(experiment: Experiment, case: Any, choose: Choose, *, rehearsal: bool) -> Job:
    fields = measuring.case_fields(case, DTYPE)
    ours, *others = experiment.candidates
    names = (ours.name, *(candidate.name for candidate in others if choose(candidate)))
    slow = [c.name for c in others if isinstance(c, CandidateKernel) and c.compiled and c.name in names]

    def launches(arch: int) -> Iterator[Launch]:
        check_case = experiment.check_case if experiment.check_case is not None and not rehearsal else case
        for shape in (case, check_case):
            yield from recorded(experiment.kernel, shape, experiment.direction, DTYPE, arch).launches

    return Job(
        title=experiment.name,
        family=experiment.family,
        case=fields,
        names=names,
        rows=lambda machine, names: measuring.rows_of(experiment, case, names, machine, fields),
        launches=launches,
        compiled=lambda machine: measuring.candidates_of(experiment, case, slow, machine),
        has_compiled=bool(slow),
    )


def _cases(experiment: Experiment, rehearsal: bool) -> Sequence[Any]:
    return [experiment.tiny] if rehearsal else experiment.cases


def _alone(candidate: CandidateKernel | Limit) -> bool:
    return candidate.name in REFERENCES


def full_steps(experiments: Sequence[Experiment], choose: Choose, *, rehearsal: bool) -> list[list[Job]]:
    """Return one batch of jobs per family, with every case of the experiments. One child process measures a batch."""
    jobs = [
        _job(experiment, case, choose, rehearsal=rehearsal)
        for experiment in experiments
        for case in _cases(experiment, rehearsal)
    ]
    return _by_family(jobs)


def first_steps(experiments: Sequence[Experiment], choose: Choose, *, rehearsal: bool) -> list[list[Job]]:
    """Return the batches of a first run on a new machine, the most valuable ones first.

    - Our kernel with the reference measurements: one case per family.
    - The same cases with all candidates that `choose` accepts.
    - All other cases: in each round, one case per family.
    """
    job = partial(_job, rehearsal=rehearsal)
    begun = [(experiment, _cases(experiment, rehearsal)[0]) for experiment in experiments if experiment.first]
    alone = [
        job(experiment, case, lambda candidate: _alone(candidate) and choose(candidate)) for experiment, case in begun
    ]
    compared = [job(experiment, case, choose) for experiment, case in begun]
    # A comparison without another candidate would only repeat the first step.
    compared = [both for one, both in zip(alone, compared, strict=True) if both.names != one.names]
    rest = [
        job(experiment, case, choose)
        for experiment in experiments
        for case in _cases(experiment, rehearsal)[1 if experiment.first else 0 :]
    ]
    rounds: list[list[Job]] = []
    waiting = _by_family(rest)
    while waiting:
        rounds += [[batch[0]] for batch in waiting]
        waiting = [batch[1:] for batch in waiting if len(batch) > 1]
    return [*_by_family(alone), *_by_family(compared), *rounds]


def tuning_steps(kernels: Sequence[Kernel], arch: int, *, rehearsal: bool) -> list[list[Job]]:
    """Return one batch per kernel: its choices between configurations."""
    return _by_family(map(_tuning_job, tuning.choices(kernels, arch, DTYPE, rehearsal=rehearsal)))


def _tuning_job(choice: tuning.Choice) -> Job:
    return Job(
        title=choice.experiment,
        family=choice.kernel.name,
        case=tuning.fields_of(choice, DTYPE),
        names=choice.names,
        rows=lambda machine, names: tuning.rows_of(choice, names, machine),
        launches=lambda arch: choice.launches,
    )


def _by_family(jobs: Iterable[Job]) -> list[list[Job]]:
    batches: dict[str, list[Job]] = {}
    for job in jobs:
        batches.setdefault(job.family, []).append(job)
    return list(batches.values())
