"""Is a kernel right? Each case against its reference in fp64, within the budget of `accuracy`. Buffers start as NaN."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from llmbench.kernels.kernel import Kernel, Random, described
from llmbench.kernels.launching import poisoned
from llmbench.kernels.proof.accuracy import Verdict, compare, held, nearness
from llmbench.kernels.registry import kernel

__all__ = ["Checked", "Verdict", "check", "check_all", "compare"]


@dataclass(frozen=True, kw_only=True)
class Checked:
    """All cases of one kernel in one format: how many tensors were compared, and the one nearest to its budget."""

    kernel: str
    dtype: torch.dtype
    checks: int
    case: str
    worst: Verdict

    @property
    def passed(self) -> bool:
        """Whether all of them are within their budgets."""
        return self.worst.passed

    def as_row(self) -> dict[str, Any]:
        """Plain values."""
        return {
            "kernel": self.kernel,
            "dtype": str(self.dtype).removeprefix("torch."),
            "checks": self.checks,
            "worst_case": self.case,
            **self.worst._asdict(),
        }


def check_all(names: Sequence[str], dtypes: Sequence[torch.dtype], seeds: int, device: str) -> Iterator[Checked]:
    """Every case of the named kernels in each format, a row a kernel and format as it is done."""
    for name in names:
        of = kernel(name)
        for dtype in of.formats(dtypes):
            found = [
                (verdict, case)
                for case in of.cases
                for seed in range(seeds)
                for verdict in check(of, case, dtype, seed, torch.device(device))
            ]
            worst, case = max(found, key=lambda pair: nearness(pair[0]))
            yield Checked(kernel=name, dtype=dtype, checks=len(found), case=described(case), worst=worst)


def check(of: Kernel, case: Any, dtype: torch.dtype, seed: int, device: torch.device) -> list[Verdict]:
    """Run `case` once and compare every output, and every gradient of `of.differentiable`."""
    inputs = of.inputs(case, Random(seed, dtype, device))
    with poisoned():
        return held(of.run, of.reference, inputs, differentiable=of.differentiable, seed=seed)
