"""The claims and their verdicts as text, as a table and as JSON."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from llmbench.report.fields import Field, records
from llmbench.report.units import si, signed
from llmbench.textbook.claim import ARITHMETIC, MEASURED, Claim, Outcome, Unit, Verdict

__all__ = ["FIELDS", "NOTES", "as_json", "claimed_text", "figure_text", "figures_text", "sentence"]

COUNTED: dict[Verdict, tuple[str, str]] = {
    "holds": ("holds", "hold"),
    "holds if": ("holds under a condition", "hold under a condition"),
    "refuted": ("is refuted", "are refuted"),
    "needs a CPU": ("needs a training on a CPU", "need a training on a CPU"),
    "needs a GPU": ("needs a GPU", "need a GPU"),
}
"""For each verdict, what a sentence says of one claim and of several claims."""

NOTES = (
    f"holds: our figure differs from the claimed figure by at most {ARITHMETIC:.0%}, if it is computed, or"
    f" {MEASURED:.0%}, if it is measured. Changes are compared as ratios: −25% is the ratio 0.75",
    "holds if: some of our figures agree. The condition is the setting of a figure marked ✓",
    "a claim with ≥ or ≤ holds if our figure is on that side",
    "a speed-up or a saving that is larger than the claimed one also counts, if the claim is about the gain",
)
"""The lines that explain the verdicts."""


def sentence(outcomes: Sequence[Outcome]) -> str:
    """Return a sentence that counts the claims of each verdict."""
    verdicts = [outcome.verdict for outcome in outcomes]
    parts = [
        f"{verdicts.count(verdict)} {one if verdicts.count(verdict) == 1 else many}"
        for verdict, (one, many) in COUNTED.items()
        if verdict in verdicts
    ]
    return f"Of {len(verdicts)} claims, {', '.join(parts)}."


def figure_text(value: float, unit: Unit) -> str:
    """Return a figure as text, in its unit."""
    return {
        "yes": "yes" if value else "no",
        "bytes": f"{si(value)}B",
        "flops": f"{si(value)}FLOP",
        "dollars": f"${value / 1e6:.2f}M",
        "share": f"{100 * value:.3g}%",
        "change": signed(f"{100 * value:+.3g}%"),
        "ratio": f"{value:.3g}×",
        "count": f"{value:,.0f}",
        "number": f"{value:.3g}",
    }[unit]


def claimed_text(claim: Claim) -> str:
    """Return the claimed figure as text, with the sign of a bound."""
    sign = {"at least": "≥ ", "at most": "≤ "}.get(claim.bound, "")
    return ("" if claim.unit == "yes" else sign) + figure_text(claim.claimed, claim.unit)


def figures_text(outcome: Outcome) -> str:
    """Return our figures as text. Several figures have their settings, and a mark if they agree with the claim."""
    results, unit = outcome.results, outcome.claim.unit
    if not results:
        return "–"
    if len(results) == 1:
        return figure_text(results[0].figure, unit)
    marked = outcome.verdict == "holds if"
    return "; ".join(
        f"{figure_text(result.figure, unit)}{' ✓' * (marked and result.agrees)} ({result.setting})"
        for result in results
    )


def _why(outcome: Outcome) -> str:
    settles = outcome.verdict in ("needs a CPU", "needs a GPU") and outcome.claim.command
    reason = f"{outcome.reason[:1].upper()}{outcome.reason[1:]}." if outcome.reason else ""
    command = f"`{outcome.claim.command}` measures it." if settles else ""
    return " ".join(filter(None, (reason, outcome.claim.why, command)))


FIELDS: tuple[Field[Outcome], ...] = (
    Field(
        "verdict",
        "verdict",
        description="`holds`, `refuted`, `holds if` (some cases agree), `needs a CPU` (a training) or `needs a GPU`",
    ),
    Field("claim", value=lambda outcome: outcome.claim.name, description="name of the claim"),
    Field(
        "claimed",
        "claimed",
        value=lambda outcome: outcome.claim.claimed,
        text=lambda outcome: claimed_text(outcome.claim),
        description="the claimed figure, in `unit`",
    ),
    Field(
        "figure",
        "llmbench",
        value=lambda outcome: outcome.results[0].figure if outcome.results else None,
        text=figures_text,
        description="our figure of the first case, in `unit`; null: not computed or measured",
        wraps=True,
    ),
    Field("says", "claim", value=lambda outcome: outcome.claim.says, description="the claim in words", wraps=True),
    Field(
        "why",
        "why",
        value=lambda outcome: outcome.claim.why,
        text=_why,
        description="why the figures agree or differ",
        wraps=True,
    ),
    Field(
        "at",
        "setting",
        value=lambda outcome: outcome.claim.at,
        description="the setting of the claim",
        wraps=True,
        spare=1,
    ),
    Field(
        "unit",
        value=lambda outcome: outcome.claim.unit,
        description="`ratio`, `share`, `change`, `bytes`, `flops`, `dollars`, `count`, `number`, `yes` (1: yes, 0: no)",
    ),
    Field(
        "bound",
        value=lambda outcome: outcome.claim.bound,
        description="how our figure must compare with `claimed`: `near`, `exact`, `or better`, `at least`, `at most`,"
        " `between`",
    ),
    Field(
        "cases",
        value=lambda outcome: [result._asdict() for result in outcome.results],
        description="our figures: a list of `figure`, `agrees`, `setting` and `formula`",
    ),
    Field("reason", value=lambda outcome: outcome.reason or None, description="why a figure decides nothing; null"),
    Field(
        "settled_by",
        value=lambda outcome: outcome.claim.settled_by,
        description="what decides the claim: `arithmetic`, `CPU` or `GPU`",
    ),
    Field(
        "run",
        value=lambda outcome: next((reading.run for reading in outcome.claim.readings), None),
        description="the run of `bench textbook` that measures the claim; null: there is none",
    ),
    Field("source", value=lambda outcome: outcome.claim.source, description="the paper behind the claim"),
    Field(
        "command",
        value=lambda outcome: outcome.claim.command or None,
        description="the command that shows or measures the figure; null: there is none yet",
    ),
)
"""The fields of a claim with its verdict."""


def as_json(outcomes: Sequence[Outcome]) -> list[dict[str, Any]]:
    """Return the claims with their verdicts as JSON objects."""
    return records(FIELDS, outcomes)
