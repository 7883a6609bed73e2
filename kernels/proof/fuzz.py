"""Check kernels on random cases: `kernels check --fuzz`.

A trial is a kernel, a random case, a format and a seed. From the seed follow the values of the inputs, their strides,
the inputs whose gradients are computed, the outputs and strides of the gradients that arrive, and the configuration.
The trials follow from the seed of the run, so that a run can be repeated, and a trial can be repeated by itself
(`repeat`).

A trial fails if a tensor exceeds its error budget, or if the op raises an error. The search for a smaller trial with
the same failure replaces fields of the case, one at a time, by simpler values.
"""

from __future__ import annotations

import time
import traceback
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import count
from typing import Any

import torch
from torch import Tensor

from llmbench.kernels.formats import FORMATS, short
from llmbench.kernels.kernel import Draw, Inputs, Random, describe, distinct_fields
from llmbench.kernels.launching import preferring
from llmbench.kernels.proof.accuracy import Op, Verdict, severity
from llmbench.kernels.proof.check import CheckResult, check_inputs
from llmbench.kernels.proof.layouts import expanded, restrided
from llmbench.kernels.registry import load_kernel

__all__ = ["Failure", "FuzzResult", "Trial", "fuzz", "repeat", "trials"]

SMALLER_S = 30.0
"""Seconds that the search for a smaller trial may take."""


@dataclass(frozen=True, kw_only=True)
class Trial:
    """A random check of one kernel. `case` is a `Case` of the kernel."""

    kernel: str
    dtype: torch.dtype
    seed: int
    case: Any

    @property
    def expression(self) -> str:
        """A Python expression that repeats the trial. Its keywords are the fields of the case that differ from their
        defaults."""
        fields = "".join(f", {name}={value!r}" for name, value in distinct_fields(self.case).items())
        return f"repeat({self.kernel!r}, {short(self.dtype)!r}, {self.seed}{fields})"


@dataclass(frozen=True, kw_only=True)
class Failure:
    """A trial that failed, its worst verdict or the text of its error, and a smaller trial with the same failure."""

    trial: Trial
    reason: str
    smaller: Trial | None = None


@dataclass(frozen=True, kw_only=True)
class FuzzResult(CheckResult):
    """The result of all trials of one kernel in one format."""

    trials: int
    failures: tuple[Failure, ...]

    @property
    def passed(self) -> bool:
        """Whether no trial failed."""
        return not self.failures


def trials(names: Sequence[str], dtypes: Sequence[torch.dtype], seed: int) -> Iterator[Trial]:
    """Yield random trials of the named kernels in turn, without an end. A seed always gives the same trials."""
    for number in count():
        for name in names:
            kernel, draw = load_kernel(name), Draw(f"{seed} {number} {name}")
            dtype = draw.choice(kernel.formats(dtypes))
            yield Trial(kernel=name, dtype=dtype, seed=draw.randrange(2**31), case=kernel.random_case(draw))


def fuzz(
    names: Sequence[str], dtypes: Sequence[torch.dtype], seconds: float, seed: int, device: str
) -> Iterator[FuzzResult | Trial]:
    """Run random trials for `seconds`. Yield each trial before it runs. Then yield the results, one per kernel and
    format, in the order of the names."""
    for name in names:
        load_kernel(name)
    deadline = time.monotonic() + seconds  # the imports do not count
    failing: dict[tuple[str, torch.dtype], list[tuple[Verdict, Trial]]] = {}
    runs: dict[tuple[str, torch.dtype], int] = {}
    failures: dict[tuple[str, torch.dtype], list[Failure]] = {}
    for trial in trials(names, dtypes, seed):
        if time.monotonic() > deadline:
            break
        yield trial
        key = trial.kernel, trial.dtype
        verdicts, reason = _outcome(trial, device)
        runs[key] = runs.get(key, 0) + 1
        failing.setdefault(key, []).extend((verdict, trial) for verdict in verdicts)
        if reason:
            smaller = _smaller(trial, reason, device)
            failures.setdefault(key, []).append(Failure(trial=trial, reason=reason, smaller=smaller))
    for name, dtype in sorted(runs, key=lambda key: (names.index(key[0]), list(FORMATS.values()).index(key[1]))):
        key = name, dtype
        none = Verdict("", 0.0, 0.0, 0.0, True), Trial(kernel=name, dtype=dtype, seed=0, case=None)
        worst, trial = max(failing.get(key) or [none], key=lambda pair: severity(pair[0]))
        yield FuzzResult(
            kernel=name,
            dtype=dtype,
            checks=len(failing.get(key, ())),
            case="" if trial.case is None else describe(trial.case),
            worst=worst,
            trials=runs[key],
            failures=tuple(failures.get(key, ())),
        )


def repeat(kernel: str, dtype: str, seed: int, /, **fields: Any) -> list[Verdict]:
    """Run one trial again and return its verdicts. `fields` are those of the kernel's case, `dtype` is bf16, fp16 or
    fp32."""
    case_type = type(load_kernel(kernel).cases[0])
    device = "cuda" if torch.cuda.is_available() else "cpu"
    return _run(Trial(kernel=kernel, dtype=FORMATS[dtype], seed=seed, case=case_type(**fields)), device)


def _outcome(trial: Trial, device: str) -> tuple[list[Verdict], str]:
    """Run a trial. Return its verdicts, and the reason for which it failed, or ""."""
    try:
        verdicts = _run(trial, device)
    except Exception as error:  # an op may raise any error
        place = traceback.extract_tb(error.__traceback__)[-1]
        text = str(error).partition("\n")[0]
        return [], f"{type(error).__name__} in {place.name}: {text}"
    worst = max(verdicts, key=severity)
    if worst.passed:
        return verdicts, ""
    return verdicts, f"{worst.tensor} has the error {worst.error:.3g}, its budget is {worst.budget:.3g}"


def _run(trial: Trial, device: str) -> list[Verdict]:
    """Run a trial and return its verdicts."""
    kernel, draw = load_kernel(trial.kernel), Draw(trial.seed)
    inputs = kernel.inputs(trial.case, Random(trial.seed, trial.dtype, torch.device(device)))
    differentiable = [name for name in kernel.differentiable if isinstance(inputs.get(name), Tensor)]
    run, reference, same_steps = kernel.run, kernel.reference, kernel.same_steps
    if not draw.chance(0.25):  # a quarter of the trials keep the layouts and gradients of the kernel's own inputs
        inputs = _with_other_layouts(inputs, kernel.unit_stride, draw)
        differentiable = [name for name in differentiable if draw.chance(0.8)] or differentiable
        gradients = draw.randrange(2**31)
        run, reference = (_with_other_gradients(op, gradients) for op in (run, reference))
        same_steps = same_steps and _with_other_gradients(same_steps, gradients)
    with preferring({}, others=draw.choice((0, 0, 1, 2))):
        return check_inputs(run, (reference, same_steps), inputs, differentiable, trial.seed)


def _with_other_layouts(inputs: Inputs, unit_stride: Sequence[str], draw: Draw) -> Inputs:
    """Return the inputs, of which some tensors have other strides. Floating-point tensors may be expanded."""
    changed = dict(inputs)
    for name, value in inputs.items():
        if isinstance(value, Tensor) and draw.chance(0.6):
            if value.is_floating_point() and name not in unit_stride and draw.chance(0.15):
                changed[name] = expanded(value, draw)
            else:
                changed[name] = restrided(value, draw, unit_stride=name in unit_stride)
    return changed


def _with_other_gradients(op: Op, seed: int) -> Op:
    """Return an op whose outputs' gradients have random strides when they arrive. If there are several outputs, some
    get no gradient."""

    def changed(**inputs: Any) -> Any:
        outputs = op(**inputs)
        draw = Draw(seed)
        if not isinstance(outputs, tuple):
            return _hooked(outputs, draw)
        used = [draw.chance(0.7) for _ in outputs]
        return tuple(_hooked(out, draw) if use else out.detach() for out, use in zip(outputs, used, strict=True))

    return changed


def _hooked(out: Tensor, draw: Draw) -> Tensor:
    """Return a view of `out` with a hook that gives its gradient another layout. A hook on `out` itself would also
    change the gradients of other results that are computed from it."""
    kind, seed = draw.random(), draw.randrange(2**31)

    def change(gradient: Tensor) -> Tensor:
        if kind < 0.2:
            return expanded(gradient, Draw(seed))
        return restrided(gradient, Draw(seed)) if kind < 0.8 else gradient

    if out.requires_grad:
        out = out.view_as(out)
        out.register_hook(change)
    return out


def _smaller(trial: Trial, reason: str, device: str) -> Trial | None:
    """Return a smaller trial with the same failure, or None if there is none among those tried."""

    def kind(reason: str) -> str:
        """Return the error's type and place, or "" for a wrong result."""
        return reason.partition(":")[0] if " in " in reason else ""

    deadline = time.monotonic() + SMALLER_S
    smallest, searching = trial, True
    while searching:
        searching = False
        for case in _simpler_cases(smallest.case):
            if time.monotonic() > deadline:
                break
            candidate = Trial(kernel=trial.kernel, dtype=trial.dtype, seed=trial.seed, case=case)
            _, smaller_reason = _outcome(candidate, device)
            if smaller_reason and kind(smaller_reason) == kind(reason):
                smallest, searching = candidate, True
                break
    return None if smallest is trial else smallest


def _simpler_cases(case: Any) -> Iterator[Any]:
    """Yield cases with one simpler field. Many are invalid, and the op refuses them with another error than the one
    that is searched for."""
    defaults = getattr(case, "_field_defaults", {})
    for name, value in case._asdict().items():
        if name in defaults and value != defaults[name]:
            yield case._replace(**{name: defaults[name]})
    for name, value in case._asdict().items():
        for simpler in _simpler_values(value):
            yield case._replace(**{name: simpler})


def _simpler_values(value: Any) -> Iterator[Any]:
    """Yield simpler values of a field: smaller integers, shorter tuples, and tuples with a simpler element."""
    if isinstance(value, bool):
        return
    if isinstance(value, int):
        yield from dict.fromkeys(simpler for simpler in (1, value // 4, value // 2, value - 1) if 0 <= simpler < value)
    elif isinstance(value, tuple):
        for index, element in enumerate(value):
            if len(value) > 1:
                yield value[:index] + value[index + 1 :]
            for simpler in _simpler_values(element):
                yield (*value[:index], simpler, *value[index + 1 :])
