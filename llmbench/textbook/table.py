"""The claims and their verdicts as text, as a table and as JSON."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from llmbench.report.fields import Field, records
from llmbench.report.units import UNKNOWN, si, signed
from llmbench.textbook.claim import ARITHMETIC, MEASURED, Claim, Outcome, Result, Unit, Verdict
from llmbench.textbook.recorded import recorded

__all__ = [
    "FIELDS",
    "NOTES",
    "as_json",
    "claimed_text",
    "figure_text",
    "figures_text",
    "interval_text",
    "mark",
    "notes",
    "sentence",
]

COUNTED: dict[Verdict, tuple[str, str]] = {
    "holds": ("holds", "hold"),
    "holds if": ("holds under a condition", "hold under a condition"),
    "refuted": ("is refuted", "are refuted"),
    "within noise": ("is within noise", "are within noise"),
    "needs a GPU": ("needs a GPU", "need a GPU"),
}
"""For each verdict, what a sentence says of one claim and of several claims."""

RULES: tuple[tuple[str, Callable[[Outcome], bool]], ...] = (
    (
        f"holds: our figure differs from the claimed figure by at most {ARITHMETIC:.0%}, if it is computed, or"
        f" {MEASURED:.0%}, if it is measured. Changes are compared as ratios: −25% is the ratio 0.75",
        lambda outcome: not outcome.claim.trainings,
    ),
    (
        "holds if: some of our figures agree. The condition is the setting of a figure marked ✓. A figure marked ? is"
        " within noise",
        lambda outcome: outcome.verdict == "holds if",
    ),
    (
        f"trainings: a figure holds if its 95% interval contains the claimed figure, or if it differs by at most"
        f" {MEASURED:.0%} of the claimed effect",
        lambda outcome: bool(outcome.claim.trainings) and outcome.claim.bound in ("near", "or better"),
    ),
    (
        "within noise: the 95% intervals of our figures contain both answers, so the trainings cannot tell",
        lambda outcome: outcome.verdict == "within noise",
    ),
    (
        "a claim with ≥ or ≤ holds if our figure is on that side",
        lambda outcome: outcome.claim.bound in ("at least", "at most"),
    ),
    (
        "a speed-up or a saving that is larger than the claimed one also counts, if the claim is about the gain",
        lambda outcome: outcome.claim.bound == "or better",
    ),
    (
        "the claimed figure can lie between two of ours. Then both have a ✓, and the condition lies between their"
        " settings",
        lambda outcome: outcome.claim.bound == "between" and outcome.verdict == "holds if",
    ),
)
"""The rules of the verdicts in words, each with the outcomes that need it."""

NOTES = tuple(text for text, _ in RULES)
"""All rules in words."""


def notes(outcomes: Sequence[Outcome]) -> list[str]:
    """Return the rules behind these outcomes."""
    return [text for text, needed in RULES if any(map(needed, outcomes))]


def sentence(outcomes: Sequence[Outcome]) -> str:
    """Return a sentence that counts the claims of each verdict."""
    verdicts = [outcome.verdict for outcome in outcomes]
    parts = [
        f"{verdicts.count(verdict)} {one if verdicts.count(verdict) == 1 else many}"
        for verdict, (one, many) in COUNTED.items()
        if verdict in verdicts
    ]
    return f"Of {len(verdicts)} claims, {', '.join(parts)}."


RAISED = str.maketrans("0123456789", "⁰¹²³⁴⁵⁶⁷⁸⁹")


def _bytes_text(value: float) -> str:
    """Return bytes with an SI prefix: 102 GB."""
    number, prefix = si(float(f"{value:.3g}")).split(" ")
    return f"{float(number):.3g} {prefix}B"


def _flops_text(value: float) -> str:
    """Return FLOPs with a power of ten: 3.14 · 10²³ FLOP."""
    number, power = f"{value:.2e}".split("e+")
    return f"{number} · 10{power.translate(RAISED)} FLOP"


def _count_text(value: float) -> str:
    """Return a count with all digits: 134,217,728. A rounded count is a number of millions: 25.2 million."""
    rounded = value >= 1e6 and value == float(f"{value:.3g}")
    return f"{value / 1e6:.3g} million" if rounded else f"{value:,.0f}"


TEXTS: dict[Unit, Callable[[float], str]] = {
    "yes": lambda value: "yes" if value else "no",
    "bytes": _bytes_text,
    "flops": _flops_text,
    "dollars": lambda value: f"${value / 1e6:.3g}M",
    "share": lambda value: signed(f"{100 * value:.3g}%"),
    "change": lambda value: signed(f"{100 * value:+.3g}%"),
    "ratio": lambda value: f"{value:.3g}×",
    "count": _count_text,
    "number": lambda value: signed(f"{value:.3g}"),
}
"""The text of a figure in each unit. It has at most three significant digits, a count all digits."""


def figure_text(value: float | None, unit: Unit) -> str:
    """Return a figure as text, in its unit."""
    return UNKNOWN if value is None else TEXTS[unit](value)


def claimed_text(claim: Claim) -> str:
    """Return the claimed figure as text, with the sign of a bound."""
    sign = {"at least": "≥ ", "at most": "≤ "}.get(claim.bound, "")
    return ("" if claim.unit == "yes" else sign) + figure_text(claim.claimed, claim.unit)


def interval_text(result: Result, unit: Unit) -> str:
    """Return the 95% interval of a figure as text: ` [1.2×, 1.4×]`. "": it has none."""
    if result.low is None or result.high is None:
        return ""
    return f" [{figure_text(result.low, unit)}, {figure_text(result.high, unit)}]"


def figures_text(outcome: Outcome) -> str:
    """Return our figures as text. Several figures have their settings, and a mark if they agree with the claim."""
    results = outcome.results
    if not results:
        return UNKNOWN
    if len(results) == 1 and results[0].figure is not None:
        return _figure_text(outcome, results[0])
    return "; ".join(f"{_figure_text(outcome, result)} ({result.setting})" for result in results)


def _figure_text(outcome: Outcome, result: Result) -> str:
    """Return a figure as text. Its interval belongs to it where the interval decides."""
    unit = outcome.claim.unit
    interval = interval_text(result, unit) if outcome.verdict == "within noise" else ""
    return f"{figure_text(result.figure, unit)}{interval}{mark(outcome, result)}"


def mark(outcome: Outcome, result: Result) -> str:
    """Return the mark behind a figure: ✓ if it is a condition of the verdict, ? if it is within noise."""
    if outcome.verdict != "holds if":
        return ""
    return " ✓" if result.agrees else " ?" if result.within_noise else ""


def _why(outcome: Outcome) -> str:
    claim = outcome.claim
    reason = f"{outcome.reason[:1].upper()}{outcome.reason[1:]}." if outcome.reason else ""
    command = f"`{claim.shown_by}` measures it." if outcome.verdict == "needs a GPU" else ""
    return " ".join(filter(None, (reason, claim.why, command)))


FIELDS: tuple[Field[Outcome], ...] = (
    Field(
        "verdict",
        "verdict",
        description="`holds`, `refuted`, `holds if` (some cases agree), `within noise` or `needs a GPU`",
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
        description="our figure of the first case, in `unit`; null: there is none",
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
        description="our figures: a list of `figure`, `agrees`, `setting`, `formula`, `low`, `high` (95% interval of"
        " the mean over `seeds`) and `within_noise`",
    ),
    Field(
        "reason",
        value=lambda outcome: outcome.reason or None,
        description="why our figures do not decide the claim; null: they do",
    ),
    Field(
        "settled_by",
        value=lambda outcome: outcome.claim.settled_by,
        description="what decides the claim: `arithmetic`, `CPU` (recorded trainings) or `GPU`",
    ),
    Field(
        "run",
        value=lambda outcome: outcome.claim.reading.run if outcome.claim.reading else None,
        description="the run of `bench textbook` that measures the claim; null: there is none",
    ),
    Field("source", value=lambda outcome: outcome.claim.source, description="the paper behind the claim"),
    Field(
        "command",
        value=lambda outcome: outcome.claim.shown_by or None,
        description="the command that shows or measures the figure; null: there is none",
    ),
    Field(
        "trainings",
        value=lambda outcome: [recorded(run).command for run in outcome.claim.runs],
        description="the commands of the recorded trainings behind the figures",
    ),
)
"""The fields of a claim with its verdict."""


def as_json(outcomes: Sequence[Outcome]) -> list[dict[str, Any]]:
    """Return the claims with their verdicts as JSON objects."""
    return records(FIELDS, outcomes)
