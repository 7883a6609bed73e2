"""Time every configuration of a kernel at its shapes. The result shows whether the shipped configuration, which is the
first one, is the fastest.

Launchers choose configurations by name (`launching.choose`). For each name that a pass uses, the configurations of that
name are timed in the same interleaved rounds. All other names use their shipped configurations. Every configuration
must give the same results as the shipped configuration, within one rounding.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from benchmarks.gpu.compiling import recorded
from benchmarks.gpu.machine import Machine, time_box
from benchmarks.gpu.measuring import case_fields
from llmbench.bench.candidates import one_pass
from llmbench.bench.kernels import inputs_of, work_of
from llmbench.kernels.kernel import Kernel
from llmbench.kernels.launching import Capture, Launch, poisoned, preferring
from llmbench.kernels.proof.accuracy import Verdict, compare
from llmbench.measure.check_and_time import Candidate, check_and_time
from llmbench.measure.results import Row, Scalar
from llmbench.sizing.work import Pass

__all__ = ["Choice", "candidates_of", "choices", "fields_of", "rankings", "rows_of"]

ONCE = ("linear_cross_entropy",)
"""Kernels whose backward pass cannot run twice after one forward pass. Their backward pass is timed together with the
forward pass."""


class Choice(NamedTuple):
    """The configurations that a launcher can choose for one name, in one pass over one case. `candidates`: the text of
    each configuration, by the configuration's number. `launches`: the launches of all configurations."""

    kernel: Kernel
    case: Any
    direction: Pass
    name: str
    candidates: dict[int, str]
    launches: Sequence[Launch]

    @property
    def names(self) -> tuple[str, ...]:
        """The names of the candidates: the number of a configuration and its text."""
        return tuple(f"{index}: {text}" for index, text in self.candidates.items())

    @property
    def experiment(self) -> str:
        """The experiment name in rows."""
        return f"tune {self.kernel.name} {self.direction}"


def choices(kernels: Sequence[Kernel], arch: int, dtype: torch.dtype, *, rehearsal: bool) -> Iterator[Choice]:
    """Yield every choice between two or more configurations, without running the kernels."""
    for kernel in kernels:
        for case in kernel.cases[:1] if rehearsal else kernel.shapes:
            known: set[str] = set()
            directions: tuple[Pass, ...] = ("forward", "both" if kernel.name in ONCE else "backward")
            for direction in directions if kernel.differentiable else directions[:1]:
                run = partial(recorded, kernel, case, direction, _format(kernel, dtype), arch)
                shipped = run()
                for name in [counted for counted in shipped.candidates if counted not in known]:
                    others = {index: run({name: index}) for index in range(1, shipped.candidates[name])}
                    words = _changed_launches(
                        _configurations(shipped), {i: _configurations(o) for i, o in others.items()}
                    )
                    if words:
                        launches = [
                            *shipped.launches,
                            *(launch for other in others.values() for launch in other.launches),
                        ]
                        yield Choice(kernel, case, direction, name, words, launches)
                known |= shipped.candidates.keys()


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


def _configurations(capture: Capture) -> list[str]:
    return [str(launch.config) for launch in capture.launches]


def _format(kernel: Kernel, dtype: torch.dtype) -> torch.dtype:
    return kernel.formats([dtype])[0]


def candidates_of(choice: Choice, names: Sequence[str], machine: Machine) -> list[Candidate]:
    """Return the candidates `names` of a choice. All candidates use the same input tensors."""
    kernel, dtype = choice.kernel, _format(choice.kernel, machine.dtype)
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

    return [candidate(index, text) for index, text in choice.candidates.items() if f"{index}: {text}" in names]


def _tensors(results: Any) -> list[Tensor]:
    return [result for result in (results if isinstance(results, tuple) else (results,)) if isinstance(result, Tensor)]


def _agreement(results: Sequence[Tensor], shipped: Sequence[Tensor]) -> Iterator[Verdict]:
    """Compare each result with the result of the shipped configuration, within one rounding of its number format. Yield
    one verdict per result."""
    for index, (result, expected) in enumerate(zip(results, shipped, strict=True)):
        yield compare(f"result {index}", result, expected, expected.double())


def fields_of(choice: Choice, dtype: torch.dtype) -> dict[str, Scalar]:
    """Return the fields that describe a choice in its rows."""
    return case_fields(choice.case, _format(choice.kernel, dtype)) | {"choice": choice.name}


def rows_of(choice: Choice, names: Sequence[str], machine: Machine) -> Iterator[Row]:
    """Yield the rows of a choice, one per configuration of `names`."""
    yield from check_and_time(
        candidates_of(choice, names, machine),
        experiment=choice.experiment,
        case=fields_of(choice, machine.dtype),
        clock=machine.clock,
        **machine.sampling,
    )


def rankings(rows: Sequence[Row], *, rehearsal: bool) -> str:
    """Return the rows of all choices as text, one ranking per choice."""
    choices: dict[str, list[Row]] = {}
    for row in rows:
        if "choice" in row.case:
            title = f"{row.experiment} · {row.case['shape']} · {row.case['choice']}"
            choices.setdefault(title, []).append(row)
    return "\n".join(_ranking(title, rows, rehearsal=rehearsal) for title, rows in choices.items())


def _ranking(title: str, rows: Sequence[Row], *, rehearsal: bool) -> str:
    """Return the rows of a choice as text, the fastest row first. Each line shows the time and its ratio to the time of
    the shipped configuration."""
    lines = [title]
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
