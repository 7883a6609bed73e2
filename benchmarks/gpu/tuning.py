"""Time every configuration of a kernel at its shapes. The result shows whether the shipped configuration, which is the
first one, is the fastest.

Launchers choose configurations by name (`launching.choose`). For each name that a pass uses, the configurations of that
name are timed in the same interleaved rounds. All other names use their shipped configurations. Every configuration
must give the same results as the shipped configuration, within one rounding.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from benchmarks.gpu.machine import Machine, time_box
from benchmarks.gpu.measuring import LEAST_S, case_fields, failed_row
from llmbench.bench.candidates import one_pass
from llmbench.bench.kernels import inputs_of, work_of
from llmbench.kernels.kernel import Kernel, Random, describe
from llmbench.kernels.launching import architecture, captured, poisoned, preferring
from llmbench.kernels.proof.accuracy import Verdict, compare
from llmbench.measure.check_and_time import Candidate, check_and_time
from llmbench.measure.results import Row
from llmbench.sizing.work import Pass

__all__ = ["Choice", "candidates_of", "choices", "ranking", "tune"]

ONCE = ("linear_cross_entropy",)
"""Kernels whose backward pass cannot run twice after one forward pass. Their backward pass is timed together with the
forward pass."""


class Choice(NamedTuple):
    """The configurations that a launcher can choose for one name, in one pass over one case. `candidates`: the text of
    each configuration, by the configuration's number."""

    kernel: Kernel
    case: Any
    direction: Pass
    name: str
    candidates: dict[int, str]

    @property
    def experiment(self) -> str:
        """The experiment name in rows."""
        return f"tune {self.kernel.name} {self.direction}"


def choices(kernels: Sequence[Kernel], machine: Machine) -> Iterator[Choice]:
    """Yield every choice between two or more configurations, without running the kernels."""
    for kernel in kernels:
        for case in kernel.cases[:1] if machine.rehearsal else kernel.shapes:
            known: set[str] = set()
            directions: tuple[Pass, ...] = ("forward", "both" if kernel.name in ONCE else "backward")
            for direction in directions if kernel.differentiable else directions[:1]:
                shipped, counts = _configurations(kernel, case, direction, machine, {})
                for name in [counted for counted in counts if counted not in known]:
                    others = range(1, counts[name])
                    configurations = {
                        index: _configurations(kernel, case, direction, machine, {name: index})[0] for index in others
                    }
                    words = _changed_launches(shipped, configurations)
                    if words:
                        yield Choice(kernel, case, direction, name, words)
                known |= counts.keys()


def _changed_launches(shipped: Sequence[str], others: Mapping[int, Sequence[str]]) -> dict[int, str]:
    """Return the text of the launch that each configuration changes, by the configuration's number. Number 0 is the
    shipped configuration of that launch. A configuration that changes no launch is left out, because it launches the
    same kernels as the shipped configuration."""
    words: dict[int, str] = {}
    for index, configurations in others.items():
        changed = [pair for pair in zip(shipped, configurations, strict=False) if pair[0] != pair[1]]
        if changed:
            words.setdefault(0, changed[0][0])
            words[index] = changed[0][1]
    return words


def _configurations(
    kernel: Kernel, case: Any, direction: Pass, machine: Machine, preferred: dict[str, int]
) -> tuple[list[str], dict[str, int]]:
    """Return the configurations of all launches of a pass, and the number of configurations per name. The launches of a
    backward pass include those of its forward pass."""
    inputs = kernel.inputs(case, Random(0, _format(kernel, machine), torch.device("cpu"), shapes_only=True))
    with captured(architecture(machine.device)) as capture, preferring(preferred):
        one_pass(
            kernel.run, inputs, "forward" if direction == "forward" else "both", differentiable=kernel.differentiable
        )()
    return [str(launch.config) for launch in capture.launches], capture.candidates


def _format(kernel: Kernel, machine: Machine) -> torch.dtype:
    return kernel.formats([machine.dtype])[0]


def candidates_of(choice: Choice, machine: Machine) -> list[Candidate]:
    """Return the candidates of a choice. All candidates use the same input tensors."""
    kernel, dtype = choice.kernel, _format(choice.kernel, machine)
    flops, moved = work_of(kernel.cost(choice.case, dtype), choice.direction)
    calls: list[Callable[[], Any]] = []

    def call() -> Any:
        if not calls:
            inputs = inputs_of(kernel, choice.case, 0, dtype, machine.device)
            calls.append(one_pass(kernel.run, inputs, choice.direction, differentiable=kernel.differentiable))
        return calls[0]()

    def candidate(index: int, text: str) -> Candidate:
        def preferred() -> Any:
            with preferring({choice.name: index}):
                return call()

        def check() -> list[Verdict]:
            with time_box(machine.candidate_s, text), poisoned():
                return list(_agreement(_tensors(preferred()), _tensors(call())))

        return Candidate(
            name=f"{index}: {text}",
            prepare=lambda: preferred,
            check=check,
            work_flops=flops or None,
            work_bytes=moved or None,
        )

    return [candidate(index, text) for index, text in choice.candidates.items()]


def _tensors(results: Any) -> list[Tensor]:
    return [result for result in (results if isinstance(results, tuple) else (results,)) if isinstance(result, Tensor)]


def _agreement(results: Sequence[Tensor], shipped: Sequence[Tensor]) -> Iterator[Verdict]:
    """Compare each result with the result of the shipped configuration, within one rounding of its number format. Yield
    one verdict per result."""
    for index, (result, expected) in enumerate(zip(results, shipped, strict=True)):
        yield compare(f"result {index}", result, expected, expected.double())


def tune(
    kernels: Sequence[Kernel], machine: Machine, left_s: Callable[[], float]
) -> Iterator[tuple[Choice, list[Row]]]:
    """Yield each choice with its rows. If no time is left for a choice, it gets one "n/a" row."""
    for choice in choices(kernels, machine):
        case = case_fields(choice.case, _format(choice.kernel, machine)) | {"choice": choice.name}
        if left_s() < LEAST_S:
            first, reason = f"0: {choice.candidates[0]}", "no time was left"
            row = Row(experiment=choice.experiment, case=case, implementation=first, status="n/a", reason=reason)
            yield choice, [row]
            continue
        try:
            candidates = candidates_of(choice, machine)
            timed = check_and_time(
                candidates, experiment=choice.experiment, case=case, clock=machine.clock, **machine.sampling
            )
            rows = list(timed)
            machine.forget()
        except Exception as problem:
            rows = [failed_row(choice.experiment, case, f"0: {choice.candidates[0]}", problem)]
        yield choice, rows


def ranking(choice: Choice, rows: Sequence[Row], *, rehearsal: bool) -> str:
    """Return the rows of a choice as text, the fastest row first. Each line shows the time and its ratio to the time of
    the shipped configuration."""
    lines = [f"{choice.experiment} · {describe(choice.case)} · {choice.name}"]
    shipped = next((row.seconds for row in rows if row.implementation.startswith("0:")), None)
    for row in sorted(rows, key=lambda row: row.seconds or float("inf")):
        if row.seconds is None:
            text = f"{row.status}: {row.reason}"
        elif rehearsal:
            text = "rehearsed"
        else:
            text = f"{row.seconds * 1e3:.4g} ms" + (
                f", {row.seconds / shipped:.3f}× the time of the shipped configuration" if shipped else ""
            )
        lines.append(f"  {row.implementation}: {text}")
    return "\n".join(lines)
