"""The kernel launches of one step of a model, for the answer of `llmbench flops --by op`."""

from __future__ import annotations

from typing import NamedTuple

from llmbench.report.units import plural
from llmbench.sizing.launches import PROFILES, ProfileName, launches, total_launches
from llmbench.sizing.op import Op
from llmbench.sizing.workload import Workload
from llmbench.spec.model import ModelSpec


class Launched(NamedTuple):
    """The ops of one step, whose launches are counted."""

    spec: ModelSpec
    workload: Workload
    ops: list[Op]
    known: bool = True
    """Whether the launches of such a step are known."""

    def of(self, op: Op) -> dict[ProfileName, int | None]:
        """Return the launches of all instances of an op, for each fusion profile. None: unknown."""
        return {name: launches(self.spec, self.workload, op, name) if self.known else None for name in PROFILES}

    @property
    def totals(self) -> dict[ProfileName, int | None]:
        """The launches of the step, for each fusion profile. None: those of at least one op are unknown."""
        return {
            name: total_launches(self.spec, self.workload, self.ops, name) if self.known else None for name in PROFILES
        }

    def lines(self, explain: bool) -> list[str]:
        """Return the totals, the ops whose launches are unknown, and with `explain` the assumptions."""
        numbers: list[str] = []
        unknown: dict[tuple[str, ...], list[str]] = {}
        for name, total in self.totals.items():
            numbers.append(f"{name} –" if total is None else f"{name} {PROFILES[name].mark} {total:,}")
            if total is None:
                gaps = tuple(op.name for op in self.ops if launches(self.spec, self.workload, op, name) is None)
                unknown.setdefault(gaps, []).append(name)
        lines = ["kernel launches of the step: " + " · ".join(numbers)]
        for (first, *others), names in unknown.items():
            more = f" and {plural(len(others), 'other op')}" if others else ""
            lines.append(f"{', '.join(names)}: no figure for {first}{more}")
        if explain:
            lines += [f"{name}: {profile.source}. {profile.assumptions}" for name, profile in PROFILES.items()]
        return lines
