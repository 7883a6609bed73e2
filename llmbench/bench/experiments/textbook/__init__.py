"""What a textbook claims of speed and memory, and what became of it here (`claims` has them)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from llmbench.bench.experiments.experiment import Ask, Experiment, Group, Summary
from llmbench.bench.experiments.textbook.claims import CLAIMS, NEAR, SMALLER, Claim, Outcome, outcome
from llmbench.bench.experiments.textbook.runs import RUNS, is_own
from llmbench.bench.results.words import in_words
from llmbench.measure.results import Row
from llmbench.report.document import Column, Table
from llmbench.report.units import si, signed

__all__ = ["EXPERIMENT", "outcomes"]


def groups(ask: Ask) -> list[Group]:
    """The run of every claim that one settles."""
    return [RUNS[name](ask) for name in dict.fromkeys(claim.run for claim in CLAIMS) if name is not None]


def outcomes(rows: Sequence[Row]) -> list[Outcome]:
    """What became of each claim, by the rows that there are."""
    by_run: dict[str, dict[str, Row]] = {}
    for row in rows:
        by_run.setdefault(str(row.case["run"]), {})[row.implementation] = row

    def settled(claim: Claim) -> Outcome:
        found = by_run.get(claim.run or "", {})
        return outcome(claim, found, own_setting=all(is_own(row.case) for row in found.values()))

    return [settled(claim) for claim in CLAIMS]


def summary(ask: Ask, rows: Sequence[Row]) -> Summary:
    """A line a claim."""
    found = [_plain(each, rows) for each in outcomes(rows)]
    names = {"says": "claim", "claimed": "claimed", "measured": "here", "verdict": "verdict", "kind": "kind"}
    columns = [Column(title, wraps=name == "says") for name, title in names.items()]
    table = []
    for claim, each in zip(CLAIMS, found, strict=True):
        shown = {"claimed": _bounded(claim), "measured": _shown(claim, each["measured"])}
        table.append([*((each | shown)[name] for name in names), each["setting"]])
    verdicts = [each["verdict"] for each in found]
    counted = (f"{name} {verdicts.count(name)}" for name in dict.fromkeys(verdicts))
    lines = [f"of {len(verdicts)} claims: {', '.join(counted)}"]
    lines += [f"{each['claim']}: n/a, {each['reason']}" for each in found if each["verdict"] == "n/a"]
    return Summary("claims", found, Table(columns=[*columns, Column("setting", wraps=True)], rows=table), lines)


def _plain(found: Outcome, rows: Sequence[Row]) -> dict[str, Any]:
    """As JSON has it: figures are ratios, shares and changes of one, bytes, or 1 for what runs."""
    claim = found.claim
    return {
        "claim": claim.name,
        "says": claim.says,
        "claimed": claim.claimed,
        "bound": claim.bound,
        "unit": claim.shown,
        "measured": found.measured,
        "verdict": found.verdict,
        "reason": found.reason or None,
        "kind": None if claim.value is None else "analytic" if claim.run is None else "measured",
        "run": claim.run,
        "at": claim.at,
        "setting": _setting(claim, rows),
        "source": claim.source,
    }


def _setting(claim: Claim, rows: Sequence[Row]) -> str:
    """That of its run; the claim's own where it was that, or nothing was run."""
    case = next((row.case for row in rows if row.case["run"] == claim.run), None)
    if case is None or is_own(case):
        return claim.at
    return ", ".join(in_words(case, [name for name in case if name not in ("run", "dtype")]))


def _bounded(claim: Claim) -> str:
    sign = {"at least": "≥ ", "at most": "≤ "}.get(claim.bound, "")
    return _shown(claim, claim.claimed) if claim.shown == "yes" else sign + _shown(claim, claim.claimed)


def _shown(claim: Claim, value: float | None) -> str:
    """In the claim's terms."""
    if value is None:
        return "–"
    return {
        "yes": "runs" if value else "refuses",
        "bytes": f"{si(value)}B",
        "share": f"{value:.0%}",
        "change": signed(f"{value:+.0%}"),
        "ratio": f"{value:.2f}×",
    }[claim.shown]


EXPERIMENT = Experiment(
    name="textbook",
    question="what does a textbook claim of speed and memory, and does it hold here?",
    groups=groups,
    baseline="",
    columns=(("loss_of_guessing", "loss of guessing", "percent"), ("loss_at_length", "at length", "percent")),
    summary=summary,
    notes=(
        f"holds: within {NEAR:.0%} of the claimed ratio (−25% is 0.75), or better where that is a speed-up or a saving;"
        " where the claim is a bound (≥, ≤), on its side",
        f"n/a here: the setting is {SMALLER}, at which a GPU measures; the figure neither confirms nor refutes",
        "loss of guessing: the loss after a short training as a share of that of knowing nothing; at length: of what is"
        " read then",
    ),
)
