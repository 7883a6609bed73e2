"""Do a textbook's claims hold on this machine? `llmbench.textbook` has the claims. `runs` measures those that a GPU
decides, and `readings` reads their figures."""

from __future__ import annotations

from collections.abc import Sequence

from llmbench.bench.experiments.experiment import Ask, Experiment, Group, Summary
from llmbench.bench.experiments.textbook.readings import read
from llmbench.bench.experiments.textbook.runs import RUNS
from llmbench.measure.results import Row
from llmbench.report.document import table
from llmbench.textbook import CLAIMS
from llmbench.textbook.claim import Outcome, decide
from llmbench.textbook.table import FIELDS, NOTES, as_json, sentence

__all__ = ["EXPERIMENT", "outcomes"]


def groups(ask: Ask) -> list[Group]:
    """Return the groups of the runs that decide the measured claims."""
    return [RUNS[name](ask) for name in dict.fromkeys(claim.reading.run for claim in CLAIMS if claim.reading)]


def outcomes(rows: Sequence[Row]) -> list[Outcome]:
    """Return the outcome of each claim. Arithmetic, recorded trainings or these rows decide it."""
    by_run: dict[str, dict[str, Row]] = {}
    for row in rows:
        by_run.setdefault(str(row.case["run"]), {})[row.implementation] = row
    return [
        decide(claim, read(claim.reading, by_run.get(claim.reading.run, {})) if claim.reading else None)
        for claim in CLAIMS
    ]


def summary(ask: Ask, rows: Sequence[Row]) -> Summary:
    """Return the table of the claims. The sentence above it counts the claims per verdict."""
    decided = outcomes(rows)
    return Summary("claims", as_json(decided), table(FIELDS, decided), sentence(decided), [])


EXPERIMENT = Experiment(
    question="do a textbook's claims hold on this machine?",
    groups=groups,
    baseline="",
    summary=summary,
    notes=NOTES,
)
