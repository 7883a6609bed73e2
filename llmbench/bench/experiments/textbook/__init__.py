"""Do a textbook's claims hold on this machine? `llmbench.textbook` has the claims. `runs` measures those that
arithmetic does not decide, and `readings` reads their figures."""

from __future__ import annotations

from collections.abc import Sequence

from llmbench.bench.experiments.experiment import Ask, Column, Experiment, Group, Summary
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
    return [RUNS[name](ask) for name in dict.fromkeys(reading.run for claim in CLAIMS for reading in claim.readings)]


def outcomes(rows: Sequence[Row]) -> list[Outcome]:
    """Return the outcome of each claim. Arithmetic or these rows decide it."""
    by_run: dict[str, dict[str, Row]] = {}
    for row in rows:
        by_run.setdefault(str(row.case["run"]), {})[row.implementation] = row
    return [
        decide(claim, [read(reading, by_run.get(reading.run, {})) for reading in claim.readings]) for claim in CLAIMS
    ]


def summary(ask: Ask, rows: Sequence[Row]) -> Summary:
    """Return the table of the claims. The sentence above it counts the claims per verdict."""
    decided = outcomes(rows)
    return Summary("claims", as_json(decided), table(FIELDS, decided), sentence(decided), [])


EXPERIMENT = Experiment(
    question="do a textbook's claims hold on this machine?",
    groups=groups,
    baseline="",
    columns=(
        Column("loss_of_guessing", "loss of guessing", "percent"),
        Column("loss_at_length", "loss at length", "percent"),
    ),
    summary=summary,
    notes=(
        *NOTES,
        "loss of guessing: the loss at the end of a short training, divided by the loss of uniform guessing",
        "loss at length: the loss on sequences longer than those in training, divided by the loss of uniform guessing",
    ),
)
