"""Check the function of a student against the reference of its exercise in fp64.

The error budget is that of `llmbench.kernels.proof.accuracy`: FACTOR times the error of plain torch in the same format,
and one rounding.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from llmbench.kernels.kernel import Inputs, Random
from llmbench.kernels.proof.accuracy import Verdict, check_against, compare
from llmbench.learn.exercises.fault import Fault
from llmbench.learn.exercises.function import Function

FACTOR = 4.0
"""The error budget, as a multiple of the error of plain torch. The budget of llmbench's kernels is 2. A student may
order the sums in another way than the reference, which changes the error."""


class CaseError(Exception):
    """The function raised an exception, which is the cause. `case`: the call. `passed`: the calls before it."""

    def __init__(self, case: str, passed: int) -> None:
        super().__init__(case)
        self.case, self.passed = case, passed


def check_cases(exercise: Function, run: Callable[..., Any], *, seed: int = 0) -> tuple[int, Fault | None]:
    """Call `run` with every case. Return the number of cases that passed, and the first fault.

    Raises CaseError if `run` raises an exception.
    """
    passed = 0
    for case, inputs in exercise.cases(Random(seed, torch.float32, torch.device("cpu"))):
        own = {name: value.clone() if isinstance(value, Tensor) else value for name, value in inputs.items()}
        try:
            result = run(**own)
        except BaseException as problem:  # also SystemExit
            raise CaseError(case, passed) from problem
        fault = _changed(case, inputs, own) or _compared(case, exercise, inputs, result)
        if fault is not None:
            return passed, fault
        passed += 1
    return passed, None


def _changed(case: str, before: Inputs, after: Mapping[str, Any]) -> Fault | None:
    for name, value in before.items():
        if isinstance(value, Tensor) and not torch.equal(value, after[name]):
            return Fault(case=case, message=f"the function changes its argument `{name}`")
    return None


def _compared(case: str, exercise: Function, inputs: Inputs, result: Any) -> Fault | None:
    wanted = exercise.reference(**inputs)
    several = isinstance(wanted, tuple)
    expected = wanted if several else (wanted,)
    results = tuple(result) if several and isinstance(result, (tuple, list)) else (result,)
    if len(results) != len(expected):
        return Fault(case=case, message=f"returns {_kind(result)}, but {exercise.returns} is expected")
    tensors = []
    for number, (value, right) in enumerate(zip(results, expected, strict=True)):
        name = f"output {number}" if several else ""
        tensor = _tensor(value, right)
        if isinstance(tensor, str):
            return Fault(case=case, message=tensor, output=name, shape=tuple(right.shape))
        tensors.append(tensor)

    exact = exercise.reference(**_widened(inputs))
    exact = exact if several else (exact,)
    if any(isinstance(value, Tensor) and value.is_floating_point() for value in inputs.values()):
        verdicts = check_against(lambda **_: tuple(tensors), exercise.reference, inputs, factor=FACTOR)
    else:  # the reference rounds its result only, so each element may have FACTOR roundings
        rounded = [value * (1 + torch.finfo(value.dtype).eps) for value in expected]
        verdicts = [compare("out", *group, factor=FACTOR) for group in zip(tensors, rounded, exact, strict=True)]
    for number, (verdict, tensor, right) in enumerate(zip(verdicts, tensors, exact, strict=True)):
        if not verdict.passed:
            return _difference(case, f"output {number}" if several else "", verdict, tensor, right.double())
    return None


def _tensor(value: Any, expected: Tensor) -> Tensor | str:
    """Return the result as a tensor with the dtype and the shape of the reference, or a text with the fault."""
    if not isinstance(value, Tensor):
        try:
            value = torch.as_tensor(value, dtype=expected.dtype)
        except (TypeError, ValueError, RuntimeError):
            return f"returns {_kind(value)}, but a tensor of shape {_shape(expected)} is expected"
    if value.shape != expected.shape:
        return f"returns shape {_shape(value)}, but {_shape(expected)} is expected"
    if value.dtype != expected.dtype:
        return f"returns {_dtype(value)}, but {_dtype(expected)} is expected"
    if value.device != expected.device:
        return f"returns a tensor on {value.device}, but one on {expected.device} is expected"
    detached: Tensor = value.detach()
    return detached


def _kind(value: Any) -> str:
    if value is None:
        return "None (a `return` may be missing)"
    if isinstance(value, Tensor):
        return f"one tensor of shape {_shape(value)}"
    return f"a {type(value).__name__}" + (f" of {len(value)}" if isinstance(value, (tuple, list)) else "")


def _shape(value: Tensor) -> str:
    return f"[{', '.join(map(str, value.shape))}]"


def _dtype(value: Tensor) -> str:
    return str(value.dtype).removeprefix("torch.")


def _widened(inputs: Inputs) -> Inputs:
    return {
        name: value.double() if isinstance(value, Tensor) and value.is_floating_point() else value
        for name, value in inputs.items()
    }


def _difference(case: str, output: str, verdict: Verdict, result: Tensor, exact: Tensor) -> Fault:
    """Return the first element whose error exceeds the budget. If none does alone, return the one with the largest
    error."""
    errors = (result.double() - exact).abs()
    bad = ~(errors <= verdict.budget * exact.abs().max().clamp(min=torch.finfo(torch.float64).tiny))
    place = int(bad.flatten().nonzero()[0]) if bool(bad.any()) else int(errors.argmax())
    index = tuple(int(part) for part in torch.unravel_index(torch.tensor(place), exact.shape))
    many = int(bad.sum())
    what = "not finite" if not bool(result.double().isfinite().all()) else f"{many} of {exact.numel()} elements differ"
    return Fault(
        case=case,
        message=what,
        output=output,
        shape=tuple(exact.shape),
        index=index,
        expected=float(exact[index]),
        got=float(result[index]),
        error=verdict.error,
        budget=verdict.budget,
    )
