"""The answer of `llmbench ablate`: losses of each step of each view, and size and times of each design."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import msgspec

from llmbench.cli.measured import place
from llmbench.learn.experiments.designs import Design, Step, View
from llmbench.learn.experiments.statistics import CONFIDENCE, Difference
from llmbench.report.document import Block, Document, Table, table
from llmbench.report.fields import Field, fitted, records
from llmbench.report.plots import Column, Columns
from llmbench.report.units import plural, signed

if TYPE_CHECKING:
    from llmbench.learn.experiments.ablate import Outcome
    from llmbench.measure.environment import Environment

__all__ = ["FIELDS", "document", "panels"]


class Row(NamedTuple):
    """One step of a view, with plain values. Losses are in nats."""

    view: View
    step: str
    about: str
    design: dict[str, str]
    parameters: int
    train_flops_per_token: float
    kv_bytes_per_token: int
    memory_bytes: int
    step_s: float
    decode_s_per_token: float
    remarks: list[str]
    lr: float
    loss: float | None
    losses: list[float | None]
    failed: int
    loss_by_lr: dict[float, list[float | None]]
    difference: Difference | None
    pairs: int
    verdict: str

    @property
    def change_text(self) -> str | None:
        """The difference with half of its interval: `−0.012 ± 0.004`."""
        found = self.difference
        if found is None:
            return None if self.about else ""
        half = "" if found.high is None else f" ± {found.high - found.mean:.3f}"
        return signed(f"{found.mean:+.3f}{half}")

    @property
    def p_text(self) -> str | None:
        """The p-value with two digits."""
        p = None if self.difference is None else self.difference.p
        if p is None:
            return None if self.about else ""
        return f"{p:.2g}"


def _difference(name: str) -> Callable[[Row], float | None]:
    """Return a function that reads a value of the difference of a row. The value is None without a difference."""
    return lambda row: None if row.difference is None else getattr(row.difference, name)


FIELDS: tuple[Field[Row], ...] = (
    Field("view", description="cumulative, added, removed, or question"),
    Field("step", "step", description="name of the step; in the first row of a view: the name of the first design"),
    Field("about", "change", description="the choice before and after the step; empty in the first row"),
    Field("design", description="the choice of each part: norm, placement, biases, positions, heads, ffn"),
    Field("parameters", "parameters", "count", description="number of parameters"),
    Field(
        "train_flops_per_token",
        "train/token",
        "mflops",
        scale="flops",
        description="FLOPs of the forward and backward pass per token",
    ),
    Field("kv_bytes_per_token", "KV/token", "bytes", description="bytes of the cache per token, in bf16"),
    Field(
        "memory_bytes",
        "memory",
        "mib",
        scale="memory",
        description="predicted peak of a training step in fp32 on a GPU, without the workspaces of its libraries",
    ),
    Field("step_s", "step", "ms", scale="step", description="measured time of a training step on this CPU"),
    Field(
        "decode_s_per_token",
        "decode/token",
        "us",
        scale="decode",
        description="measured time per token, with a cache and without a batch, in the mean over a sequence",
    ),
    Field("remarks", description="what disturbed the times: noisy, CPU contention; empty if nothing did"),
    Field(
        "lr",
        "lr",
        text=lambda row: f"{row.lr:g}",
        description="learning rate at which the fewest seeds failed; among several ones, that with the lowest loss",
    ),
    Field(
        "loss",
        "loss",
        text=lambda row: "diverged" if row.loss is None else f"{row.loss:.3f}",
        description="validation loss in nats at this rate, mean over the seeds that did not fail; if all failed, over "
        "those that did not stop; null if all stopped",
    ),
    Field("losses", description="the loss of each seed at this rate; null if the training stopped"),
    Field("failed", description="number of seeds that failed at this rate: they stopped, or learned hardly anything"),
    Field("loss_by_lr", description="the losses of all seeds by learning rate; null if the training stopped"),
    Field(
        "change",
        "Δ loss",
        value=_difference("mean"),
        text=lambda row: row.change_text,
        description="loss minus that of the step before (cumulative), of the first row (added, question), or of the "
        "last design (removed), mean over `pairs`; null in the first row and without pairs",
    ),
    Field("pairs", description="number of seeds with which neither of the two designs failed; 0 in the first row"),
    Field(
        "low",
        value=_difference("low"),
        description="lower end of the 95% interval of `change`; null with less than two pairs",
    ),
    Field("high", value=_difference("high"), description="upper end of this interval"),
    Field(
        "p",
        "p",
        value=_difference("p"),
        text=lambda row: row.p_text,
        description="two-sided p-value of a true change of 0",
    ),
    Field(
        "verdict",
        "verdict",
        description="first, better, worse, within noise, one seed, or `N of M seeds failed`; not compared: all seeds "
        "of the design before failed",
    ),
)
COSTS = {
    "step": 0,
    "about": 3,
    "parameters": 0,
    "train_flops_per_token": 0,
    "kv_bytes_per_token": 0,
    "memory_bytes": 2,
    "step_s": 0,
    "decode_s_per_token": 0,
}
"""The columns of the table of costs, with their ranks for narrow terminals (`Field.spare`)."""
LOSSES = ("step", "about", "lr", "loss", "change", "p", "verdict")
"""The columns of the tables of losses."""
VERDICTS = {"lower": "better", "higher": "worse", "within noise": "within noise", "one pair": "one seed"}
NOT_COMPARED = "not compared"
BEFORE: dict[View, str] = {
    "cumulative": "the step before",
    "added": "{first}",
    "removed": "{first}",
    "question": "{first}",
}
"""The design of each view that a design is compared with."""


def _row(step: Step, outcomes: Mapping[Design, Outcome]) -> Row:
    outcome = outcomes[step.design]
    costs = outcome.costs
    change, pairs = _change(step.before, step.design, outcomes)
    return Row(
        step.view,
        step.name,
        step.about,
        step.design._asdict(),
        costs.parameters,
        costs.train_flops_per_token,
        costs.kv_bytes_per_token,
        costs.memory_bytes,
        costs.step_s,
        costs.decode_s_per_token,
        costs.remarks,
        outcome.rate,
        outcome.loss,
        list(outcome.best),
        outcome.failed,
        {rate: list(losses) for rate, losses in outcome.losses.items()},
        change,
        pairs,
        _verdict(step, outcome, change),
    )


def _verdict(step: Step, outcome: Outcome, change: Difference | None) -> str:
    """Return the verdict of a row. A failed seed says more than an interval over the other seeds."""
    if outcome.failed:
        return f"{outcome.failed} of {plural(len(outcome.best), 'seed')} failed"
    if step.before is None:
        return "first"
    return NOT_COMPARED if change is None else VERDICTS[change.verdict]


def _change(before: Design | None, after: Design, outcomes: Mapping[Design, Outcome]) -> tuple[Difference | None, int]:
    from llmbench.learn.experiments.ablate import difference

    return (None, 0) if before is None else difference(outcomes[after], outcomes[before])


def document(
    steps: Sequence[Step],
    outcomes: Mapping[Design, Outcome],
    unigram: float,
    inputs: dict[str, Any],
    about: str,
    found: Environment,
) -> Document:
    """Return the document of all steps. `unigram`: the loss of guessing by frequency, in nats. `about`: the model, the
    text and the settings."""
    rows = [_row(step, outcomes) for step in steps]
    views = list(dict.fromkeys(row.view for row in rows))
    blocks = [_losses([row for row in rows if row.view == view]) for view in views]
    blocks[0].answer = " ".join(_findings(steps, rows, outcomes))
    blocks[0].headline = "\n".join(filter(None, (about, blocks[0].headline)))
    blocks[0].notes = list(_notes(rows, unigram, inputs["seeds"]))
    first = {step.design: row for step, row in reversed(list(zip(steps, rows, strict=True)))}
    designs = [first[design] for design in dict.fromkeys(step.design for step in steps)]
    disturbed = sorted({remark for row in rows for remark in row.remarks})
    costs = Block(
        headline="size and times of each design",
        table=_columns(COSTS, designs),
        lines=[
            "memory: predicted peak of a training step in fp32, without the workspaces of a GPU",
            "step: a training step. decode: one token of one sequence, with a cache",
            place(found),
        ],
        notes=[f"the times are disturbed: {', '.join(disturbed)}"] if disturbed else [],
    )
    return Document(
        command="ablate",
        inputs=inputs,
        environment=msgspec.structs.asdict(found),
        also={"unigram": unigram},
        rows_key="steps",
        rows=records(FIELDS, rows),
        blocks=[*blocks, costs],
        tables=[table(FIELDS, rows)],
    )


def panels(steps: Sequence[Step], outcomes: Mapping[Design, Outcome], unigram: float) -> list[Columns]:
    """Return a plot of each view: the loss of each step with the interval of its change. `unigram`: see `document`."""
    rows = [_row(step, outcomes) for step in steps]
    result = []
    for view in dict.fromkeys(row.view for row in rows):
        own = [(row, outcomes[step.design]) for step, row in zip(steps, rows, strict=True) if row.view == view]
        first = own[0][0].step
        result.append(
            Columns(
                title="" if view == "question" else f"view: {view}",
                y="validation loss (nats)",
                columns=[_column(row, outcome) for row, outcome in own],
                interval=f"mean, and 95% interval of its\ndifference from {BEFORE[view].format(first=first)}",
                cross="a seed that failed",
                line=("guessing by frequency", unigram),
            )
        )
    return result


def _column(row: Row, outcome: Outcome) -> Column:
    found = row.difference
    half = None if found is None or found.high is None else found.high - found.mean
    finite = [loss for loss in row.losses if loss is not None]
    return Column(
        label="\n".join((row.step, *row.about.replace(" → ", " →\n").split("\n"))).rstrip(),
        mean=None if row.failed == len(row.losses) else row.loss,
        half=half,
        values=[loss for loss in finite if outcome.learned(loss)],
        crossed=[loss for loss in finite if not outcome.learned(loss)],
    )


def _columns(chosen: Mapping[str, int], rows: Sequence[Row]) -> Table:
    """Return a table of some fields. `chosen`: their names, with their ranks for narrow terminals (`Field.spare`)."""
    fields = {field.name: field for field in FIELDS}
    columns = [msgspec.structs.replace(fields[name], spare=rank) for name, rank in chosen.items()]
    return table(fitted(columns, rows), rows)


def _losses(rows: Sequence[Row]) -> Block:
    """Return the table of one view. The learning rate has a column if there are several."""
    one_rate = all(len(row.loss_by_lr) == 1 for row in rows)
    view = rows[0].view
    return Block(
        headline="" if view == "cumulative" else f"view: {view}",
        table=_columns({name: 0 for name in LOSSES if name != "lr" or not one_rate}, rows),
        lines=[
            "Δ ± half of its 95% interval, paired by seed: the loss minus that of "
            + BEFORE[view].format(first=rows[0].step)
            + (". Above 0: the removed step was useful" if view == "removed" else "")
        ],
    )


def _findings(steps: Sequence[Step], rows: Sequence[Row], outcomes: Mapping[Design, Outcome]) -> Iterator[str]:
    """Yield the sentences that answer the question: what did the steps of the first view gain or lose?"""
    view = rows[0].view
    own = [(step, row) for step, row in zip(steps, rows, strict=True) if row.view == view]
    (first, base), changed = own[0], own[1:]
    if view == "cumulative":
        last = changed[-1][0].design
        whole, _ = _change(first.design, last, outcomes)
        if whole is not None and base.loss is not None:
            yield (
                f"From {base.step} with a loss of {base.loss:.3f} nats, {plural(len(changed), 'step')} lead to "
                f"{outcomes[last].loss:.3f}: {_words(whole)}."
            )
    for verdict, sentence in SENTENCES.items():
        found = [row for _, row in changed if row.verdict == verdict]
        if found:
            yield sentence.format(", ".join(map(_named, found)))
    failed = [f"{_named(row)}: {row.verdict}" for _, row in own if row.failed]
    if failed:
        yield f"Failed: {'; '.join(failed)}."


SENTENCES = {
    "better": "Lower loss: {}.",
    "worse": "Higher loss: {}.",
    "within noise": "Within noise: {}.",
    "one seed": "Not decided, because there is one seed to compare: {}.",
    NOT_COMPARED: "Not compared, because the design before failed: {}.",
}


def _named(row: Row) -> str:
    return f"{row.step} ({row.about})" if row.about else row.step


def _words(change: Difference) -> str:
    """Return what a difference says: `0.041 nats lower (p = 0.003)`."""
    direction = "lower" if change.mean < 0 else "higher"
    amount = f"{abs(change.mean):.3f} nats {direction}"
    if change.p is None:
        return f"{amount}, with one seed"
    return f"{amount} (p = {change.p:.2g})" + (", which is within noise" if change.verdict == "within noise" else "")


def _notes(rows: Sequence[Row], unigram: float, seeds: int) -> Iterator[str]:
    """Yield what a reader must know before using the losses."""
    if any(row.failed for row in rows):
        yield (
            f"a seed failed if its training stopped, or if its loss is not clearly below {unigram:.3f} nats, which a "
            "model gets that knows only how often each token occurs. A longer training may help"
        )
    fewer = [f"{row.step} ({row.pairs} of {seeds})" for row in rows if 0 < row.pairs < seeds]
    if fewer:
        yield f"Δ and loss leave out the seeds that failed. Seeds left for Δ: {', '.join(fewer)}"
    if seeds == 1:
        yield "one seed shows no noise. `--seeds 3` gives intervals"
    tested = sum(row.difference is not None and row.difference.p is not None for row in rows)
    if tested > 1:
        share = 1 - CONFIDENCE**tested
        yield f"if no step had an effect, at least 1 of {tested} intervals would miss 0 in about {share:.0%} of runs"
