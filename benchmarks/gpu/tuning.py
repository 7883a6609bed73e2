"""Every configuration that a kernel has to choose from, timed at its shapes: is the shipped one, the first, the best?

Launchers choose by name (`launching.choose`). For each name that a pass over a shape meets, its candidates are timed in
the same interleaved rounds, all other names as they ship. Each must give what the shipped one gives, to a rounding.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from benchmarks.gpu.calls import inputs_of, work_of
from benchmarks.gpu.machine import Machine, time_box
from benchmarks.gpu.measuring import LEAST_S, broken, case_of
from llmbench.bench.candidates import one_pass
from llmbench.kernels.kernel import Kernel, Random, describe
from llmbench.kernels.launching import architecture, captured, poisoned, preferring
from llmbench.kernels.proof.accuracy import Verdict, compare
from llmbench.measure.check_and_time import Candidate, check_and_time
from llmbench.measure.results import Row
from llmbench.sizing.work import Pass

__all__ = ["Choice", "choices", "ranked", "rivals_of", "tuned"]

ONCE = ("linear_cross_entropy",)
"""Kernels whose backward pass cannot be repeated: it is timed with its forward pass."""


class Choice(NamedTuple):
    """What one name of a launcher can choose in one pass over one case: its candidates in words, by their number."""

    kernel: Kernel
    case: Any
    way: Pass
    name: str
    candidates: dict[int, str]

    @property
    def experiment(self) -> str:
        """As rows call it."""
        return f"tune {self.kernel.name} {self.way}"


def choices(kernels: Sequence[Kernel], machine: Machine) -> Iterator[Choice]:
    """Every choice of these kernels between two candidates or more, found without running them."""
    for of in kernels:
        for case in of.cases[:1] if machine.rehearsal else of.shapes:
            known: set[str] = set()
            ways: tuple[Pass, ...] = ("forward", "both" if of.name in ONCE else "backward")
            for way in ways if of.differentiable else ways[:1]:
                shipped, counts = _configurations(of, case, way, machine, {})
                for name in [each for each in counts if each not in known]:
                    others = range(1, counts[name])
                    found = {index: _configurations(of, case, way, machine, {name: index})[0] for index in others}
                    words = _in_words(shipped, found)
                    if words:
                        yield Choice(of, case, way, name, words)
                known |= counts.keys()


def _in_words(shipped: Sequence[str], found: Mapping[int, Sequence[str]]) -> dict[int, str]:
    """The launch that each candidate changes, as it is then, and under 0 as it ships; a candidate that changes nothing
    is left out, for the last one stands for those beyond it."""
    words: dict[int, str] = {}
    for index, configurations in found.items():
        changed = [pair for pair in zip(shipped, configurations, strict=False) if pair[0] != pair[1]]
        if changed:
            words.setdefault(0, changed[0][0])
            words[index] = changed[0][1]
    return words


def _configurations(
    of: Kernel, case: Any, way: Pass, machine: Machine, preferred: dict[str, int]
) -> tuple[list[str], dict[str, int]]:
    """The configurations of a pass's launches, its forward pass included, and how many candidates each name had."""
    inputs = of.inputs(case, Random(0, _format(of, machine), torch.device("cpu"), shapes_only=True))
    with captured(architecture(machine.device)) as capture, preferring(preferred):
        one_pass(of.run, inputs, "forward" if way == "forward" else "both", differentiable=of.differentiable)()
    return [str(launch.config) for launch in capture.launches], capture.candidates


def _format(of: Kernel, machine: Machine) -> torch.dtype:
    return of.formats([machine.dtype])[0]


def rivals_of(choice: Choice, machine: Machine) -> list[Candidate]:
    """The candidates of a choice, which share their inputs."""
    of, dtype = choice.kernel, _format(choice.kernel, machine)
    flops, moved = work_of(of.cost(choice.case, dtype), choice.way)
    made: list[Callable[[], Any]] = []

    def call() -> Any:
        if not made:
            inputs = inputs_of(of, choice.case, 0, dtype, machine.device)
            made.append(one_pass(of.run, inputs, choice.way, differentiable=of.differentiable))
        return made[0]()

    def rival(index: int, words: str) -> Candidate:
        def candidate() -> Any:
            with preferring({choice.name: index}):
                return call()

        def check() -> list[Verdict]:
            with time_box(machine.rival_s, words), poisoned():
                return list(_agreement(_tensors(candidate()), _tensors(call())))

        return Candidate(
            name=f"{index}: {words}",
            prepare=lambda: candidate,
            check=check,
            work_flops=flops or None,
            work_bytes=moved or None,
        )

    return [rival(index, words) for index, words in choice.candidates.items()]


def _tensors(results: Any) -> list[Tensor]:
    return [each for each in (results if isinstance(results, tuple) else (results,)) if isinstance(each, Tensor)]


def _agreement(found: Sequence[Tensor], shipped: Sequence[Tensor]) -> Iterator[Verdict]:
    """Each result of a candidate held to that of the shipped one, within a rounding of its format."""
    for place, (one, other) in enumerate(zip(found, shipped, strict=True)):
        yield compare(f"result {place}", one, other, other.double())


def tuned(
    kernels: Sequence[Kernel], machine: Machine, left_s: Callable[[], float]
) -> Iterator[tuple[Choice, list[Row]]]:
    """Each choice with the rows of its candidates. One that is not begun in time is a single row "n/a"."""
    for choice in choices(kernels, machine):
        case = case_of(choice.case, _format(choice.kernel, machine)) | {"choice": choice.name}
        if left_s() < LEAST_S:
            first, reason = f"0: {choice.candidates[0]}", "no time was left"
            row = Row(experiment=choice.experiment, case=case, implementation=first, status="n/a", reason=reason)
            yield choice, [row]
            continue
        try:
            rivals = rivals_of(choice, machine)
            found = check_and_time(
                rivals, experiment=choice.experiment, case=case, clock=machine.clock, **machine.sampling
            )
            rows = list(found)
            machine.forget()
        except Exception as problem:
            rows = [broken(choice.experiment, case, f"0: {choice.candidates[0]}", problem)]
        yield choice, rows


def ranked(choice: Choice, rows: Sequence[Row], *, rehearsal: bool) -> str:
    """The candidates of a choice for a reader, the fastest first, each with its time over the shipped one's."""
    lines = [f"{choice.experiment} · {describe(choice.case)} · {choice.name}"]
    shipped = next((row.seconds for row in rows if row.implementation.startswith("0:")), None)
    for row in sorted(rows, key=lambda row: row.seconds or float("inf")):
        if row.seconds is None:
            said = f"{row.status}: {row.reason}"
        elif rehearsal:
            said = "rehearsed"
        else:
            said = f"{row.seconds * 1e3:.4g} ms" + (f", {row.seconds / shipped:.3f} of the shipped" if shipped else "")
        lines.append(f"  {row.implementation}: {said}")
    return "\n".join(lines)
