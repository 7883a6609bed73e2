"""Check a kernel: compare each case with its reference in fp64, within the error budget of accuracy.py. Buffers start
as NaN, so that a check fails if a kernel leaves an element unwritten."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from llmbench.kernels.kernel import Inputs, Kernel, Random, describe
from llmbench.kernels.launching import poisoned
from llmbench.kernels.proof.accuracy import Op, Verdict, check_against, compare, severity
from llmbench.kernels.registry import load_kernel

__all__ = ["CheckResult", "Verdict", "check", "check_all", "check_inputs", "compare"]


@dataclass(frozen=True, kw_only=True)
class CheckResult:
    """The result of all cases of one kernel in one format. `checks` is the number of compared tensors, and `worst` is
    the verdict that is nearest to its budget."""

    kernel: str
    dtype: torch.dtype
    checks: int
    case: str
    worst: Verdict

    @property
    def passed(self) -> bool:
        """Whether every tensor is within its budget."""
        return self.worst.passed


def check_all(names: Sequence[str], dtypes: Sequence[torch.dtype], seeds: int, device: str) -> Iterator[CheckResult]:
    """Check every case of the named kernels with `seeds` random inputs each. Yield one result per kernel and format."""
    for name in names:
        kernel = load_kernel(name)
        for dtype in kernel.formats(dtypes):
            verdicts = [
                (verdict, case)
                for case in kernel.cases
                for seed in range(seeds)
                for verdict in check(kernel, case, dtype, seed, torch.device(device))
            ]
            worst, case = max(verdicts, key=lambda pair: severity(pair[0]))
            yield CheckResult(kernel=name, dtype=dtype, checks=len(verdicts), case=describe(case), worst=worst)


def check(kernel: Kernel, case: Any, dtype: torch.dtype, seed: int, device: torch.device) -> list[Verdict]:
    """Run `case` once and compare every output, and every gradient of `kernel.differentiable`."""
    inputs = kernel.inputs(case, Random(seed, dtype, device))
    forms = kernel.reference, kernel.same_steps
    return check_inputs(kernel.run, forms, inputs, kernel.differentiable, seed)


def check_inputs(
    run: Op, forms: tuple[Op, Op | None], inputs: Inputs, differentiable: Sequence[str], seed: int
) -> list[Verdict]:
    """Run an op once and compare every output, and the gradients of the inputs named in `differentiable`. `forms` are
    `reference` and `same_steps` of the kernel."""
    reference, same_steps = forms
    with poisoned():
        return check_against(run, reference, inputs, differentiable=differentiable, seed=seed, same_steps=same_steps)
