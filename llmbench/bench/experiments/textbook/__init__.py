"""Do a textbook's claims about speed and memory hold on this machine? `claims` lists the claims, and `runs` measures
them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from llmbench.bench.experiments.experiment import Ask, Column, Experiment, Group, Summary
from llmbench.bench.experiments.textbook.claims import CLAIMS, NEAR, Claim, Outcome, Verdict, outcome
from llmbench.bench.experiments.textbook.runs import RUNS, is_own
from llmbench.bench.results.words import in_words
from llmbench.measure.results import Row
from llmbench.report.document import table
from llmbench.report.fields import Field
from llmbench.report.units import si, signed

__all__ = ["EXPERIMENT", "outcomes"]


def groups(ask: Ask) -> list[Group]:
    """Return the groups of the runs that decide the measured claims."""
    return [RUNS[name](ask) for name in dict.fromkeys(claim.run for claim in CLAIMS) if name is not None]


def outcomes(rows: Sequence[Row]) -> list[Outcome]:
    """Return the outcome of each claim, decided from these rows."""
    by_run: dict[str, dict[str, Row]] = {}
    for row in rows:
        by_run.setdefault(str(row.case["run"]), {})[row.implementation] = row

    def decided(claim: Claim) -> Outcome:
        own = by_run.get(claim.run or "", {})
        return outcome(claim, own, own_setting=all(is_own(row.case) for row in own.values()))

    return [decided(claim) for claim in CLAIMS]


def summary(ask: Ask, rows: Sequence[Row]) -> Summary:
    """Return the table of the claims. The sentence above it counts the claims per verdict. A note below it gives the
    reason of each claim without a figure."""
    decided = [_as_json(decision, rows) for decision in outcomes(rows)]
    verdicts = [line["verdict"] for line in decided]
    counted = [
        f"{verdicts.count(verdict)} {one if verdicts.count(verdict) == 1 else many}"
        for verdict, (one, many) in COUNTED.items()
        if verdict in verdicts
    ]
    answer = f"Of {len(verdicts)} claims, {', '.join(counted)}."
    notes = [f"{line['claim']}: n/a, {line['reason']}" for line in decided if line["verdict"] == "n/a"]
    return Summary("claims", decided, table(FIELDS, zip(CLAIMS, decided, strict=True)), answer, notes)


COUNTED: dict[Verdict, tuple[str, str]] = {
    "holds": ("holds", "hold"),
    "does not": ("does not hold", "do not hold"),
    "n/a here": ("cannot be decided at the small shapes of this run",) * 2,
    "n/a": ("has no figure", "have no figure"),
}
"""For each verdict, what the sentence above the table says of one claim and of several claims."""


FIELDS: tuple[Field[tuple[Claim, dict[str, Any]]], ...] = (
    Field("verdict", "verdict", value=lambda pair: pair[1]["verdict"]),
    Field("claimed", "claimed", value=lambda pair: pair[1]["claimed"], text=lambda pair: _bounded(pair[0])),
    Field(
        "measured",
        "here",
        value=lambda pair: pair[1]["measured"],
        text=lambda pair: _shown(pair[0], pair[1]["measured"]),
    ),
    Field("says", "claim", value=lambda pair: pair[1]["says"], wraps=True),
    Field("kind", "kind", value=lambda pair: pair[1]["kind"], spare=2),
    Field("setting", "setting", value=lambda pair: pair[1]["setting"], wraps=True, spare=1),
)
"""The fields of the table. Each field reads a pair: a claim, and the JSON object of the claim."""


def _as_json(decision: Outcome, rows: Sequence[Row]) -> dict[str, Any]:
    """Return a claim with its outcome as a JSON object.

    The key `unit` contains the unit of `claimed` and `measured`. "ratio": a ratio of two times. "share", "change": a
    fraction of 1. "bytes": bytes. "yes": 1 if the model runs, 0 if the model refuses to run.
    """
    claim = decision.claim
    return {
        "claim": claim.name,
        "says": claim.says,
        "claimed": claim.claimed,
        "bound": claim.bound,
        "unit": claim.shown,
        "measured": decision.measured,
        "verdict": decision.verdict,
        "reason": decision.reason or None,
        "kind": None if claim.value is None else "analytic" if claim.run is None else "measured",
        "run": claim.run,
        "at": claim.at,
        "setting": _setting(claim, rows),
        "source": claim.source,
    }


def _setting(claim: Claim, rows: Sequence[Row]) -> str:
    """Return the setting of the claim's run in words. If there was no run, or if the run used the claim's own setting,
    return `claim.at`."""
    case = next((row.case for row in rows if row.case["run"] == claim.run), None)
    if case is None or is_own(case):
        return claim.at
    return ", ".join(in_words(case, [name for name in case if name not in ("run", "dtype")]))


def _bounded(claim: Claim) -> str:
    sign = {"at least": "≥ ", "at most": "≤ "}.get(claim.bound, "")
    return _shown(claim, claim.claimed) if claim.shown == "yes" else sign + _shown(claim, claim.claimed)


def _shown(claim: Claim, value: float | None) -> str:
    """Return a figure as text, in the unit of the claim."""
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
    question="do a textbook's claims about speed and memory hold on this machine?",
    groups=groups,
    baseline="",
    columns=(
        Column("loss_of_guessing", "loss of guessing", "percent"),
        Column("loss_at_length", "loss at length", "percent"),
    ),
    summary=summary,
    notes=(
        f"holds: the measured figure differs from the claimed figure by at most {NEAR:.0%}. Changes are compared as"
        " ratios: −25% is the ratio 0.75",
        "holds, for a speed-up or a saving: a measured gain that is larger than the claimed gain also counts",
        "holds, for a bound (≥, ≤): the measured figure respects the bound",
        "n/a here: the run was smaller than the setting of the claim, so its figure cannot decide the claim. A run on a"
        " GPU uses the setting of the claim",
        "loss of guessing: the loss at the end of a short training, divided by the loss of uniform guessing",
        "loss at length: the loss on sequences longer than those in training, divided by the loss of uniform guessing",
    ),
)
