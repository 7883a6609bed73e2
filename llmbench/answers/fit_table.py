"""The table of `llmbench fit` about several devices or settings."""

from __future__ import annotations

from typing import Any

import msgspec

from llmbench.answers.about import model_block, sweep_fields
from llmbench.answers.fit_row import FIELDS, Fitted
from llmbench.report.document import Block, table
from llmbench.report.fields import Field
from llmbench.report.units import plural, word_list
from llmbench.sizing.serving.layouts import counts
from llmbench.sizing.serving.proposals import MORE_GPUS

SWEPT = {"weights": "weights", "kv_dtype": "KV format", "seq_len": "tokens", "users": "users"}
"""The headings of the options that a sweep can vary."""


def several(rows: list[Fitted]) -> Block:
    """Return the table of several devices, formats of the weights, or settings of a sweep."""
    first = rows[0]
    questions = _by_question(rows)
    swept = len(questions) > 1
    if swept:
        # Without --device, each row has the best device. The rows of all devices are too many to read.
        shown = rows if first.asked else list(map(_best, questions))
    else:
        shown = [row for row in _by_cost(rows) if row.fits or first.asked]
    everything = shown
    if not (swept or first.asked) and any(row.price is not None for row in shown):
        shown = [row for row in shown if row.price is not None]
    about = [row for row in everything if row.fit is not None]
    common, some = _doubts(about)
    block = model_block(
        msgspec.structs.replace(first, doubts=common),
        context=_context(rows),
        table=table(_columns(shown, swept=swept), shown) if shown else None,
        lines=[*_left_out(rows, swept=swept), *some],
    )
    if len(shown) < len(everything):
        block.long_table = table(_columns(everything, swept=swept), everything)
    block.about = {}
    block.notes = list(dict.fromkeys(note for row in shown or rows for note in row.notes))
    block.answer = " ".join(filter(None, [_answer(rows, questions), "" if swept else _cheapest(rows)]))
    if first.asked and not swept:
        block.lines += _more_gpus(rows)
    return block


def _columns(shown: list[Fitted], *, swept: bool) -> list[Field[Fitted]]:
    """Return the columns: what a sweep asks, the device, and the answer."""
    fields = {field.name: field for field in sweep_fields(FIELDS, shown, SWEPT)}
    formats = any(row.question.weights != shown[0].question.weights for row in shown)
    columns = [fields[name] for name in SWEPT if name != "weights" or formats]
    if not (swept and shown[0].asked) or any(row.device != shown[0].device for row in shown):
        columns.append(fields["device"])
    several = any(row.gpus is not None and row.gpus > 1 for row in shown)
    names = ["fits", "gpus", *(["layout"] if several else []), "capacity", "longest_tokens", "filled", "price_per_hour"]
    columns += [fields[name] for name in names]
    if swept and shown[0].asked:
        columns.append(
            Field("enough_gpus", "GPUs that suffice", "count", value=_enough, sparse=True, spare=1, in_json=False)
        )
    if not shown or not shown[0].asked:
        columns.remove(fields["fits"])
    if swept and not shown[0].asked:
        fitting = Field[Fitted]("device", "device", value=lambda row: row.device.name if row.fits else None)
        columns = [fitting if column.name == "device" else column for column in columns]
    return columns


def _enough(row: Fitted) -> int | None:
    """Return the number of GPUs that suffices, or None if none of those that were tried does."""
    if row.fits:
        return row.gpus
    return next((change.fit.question.layout.num_gpus for change in row.changes if change.orders == (MORE_GPUS,)), None)


def _best(same: list[Fitted]) -> Fitted:
    """Return the row of the cheapest device, or of the fewest GPUs of the smallest device, or one that does not fit."""
    fitting = [row for row in same if row.fits]
    if not fitting:
        return next((row for row in same if row.fit is None), same[0])
    return min(_by_cost(fitting), key=lambda row: (row.cost is None, row.cost or 0, row.gpus))


def _by_question(rows: list[Fitted]) -> list[list[Fitted]]:
    """Return the rows that answer the same question: users, tokens and format of the cache are equal."""
    groups: dict[tuple[Any, ...], list[Fitted]] = {}
    for row in rows:
        groups.setdefault((row.question.kv, row.question.seq, row.question.users), []).append(row)
    return list(groups.values())


def _by_cost(rows: list[Fitted]) -> list[Fitted]:
    """Return the rows with the cheapest first if prices are given, and those that do not fit last.

    Without prices, the order stays that of the devices, by their memory.
    """
    if all(row.price is None for row in rows):
        return rows
    return sorted(rows, key=lambda row: (not row.fits, row.cost is None, row.cost or 0))


def _context(rows: list[Fitted]) -> str:
    """Return the engine, and what all rows ask."""
    question = rows[0].question

    def differs(name: str) -> bool:
        return any(getattr(row.question, name) != getattr(question, name) for row in rows)

    said = [rows[0].device.name] if all(row.device == rows[0].device for row in rows) else []
    said.append(rows[0].engine.title)
    if not differs("users") and not differs("seq"):
        said.append(f"{plural(question.users, 'request')} of {plural(question.seq, 'token')}")
    elif not differs("users"):
        said.append(plural(question.users, "request"))
    elif not differs("seq"):
        said.append(f"requests of {plural(question.seq, 'token')}")
    if question.kv is not None and not differs("kv"):
        said.append(f"cache {question.kv}")
    return " · ".join(said)


def _answer(rows: list[Fitted], questions: list[list[Fitted]]) -> str:
    first = rows[0]
    if first.asked:
        fitting = sum(row.fits for row in rows)
        return f"{first.spec.name} fits in {fitting or 'none'} of {plural(len(rows), 'case')}."
    if len(questions) == 1:
        return _smallest(first, [row for row in rows if row.fits])
    fitting = sum(any(row.fits for row in same) for same in questions)
    best = "the smallest device" if first.fixed else f"the fewest GPUs of one kind, up to {_most(first)} of them"
    if any(row.price is not None for row in rows):
        best = "the cheapest choice"
    return (
        f"{first.spec.name} fits on some built-in device in {fitting} of {plural(len(questions), 'case')}. "
        f"Each row has {best}."
    )


NAMED = 4
"""The largest number of equally cheap choices that the first sentence names."""


def _cheapest(rows: list[Fitted]) -> str:
    """Return a sentence with the cheapest of the rows that fit and have a price, or ""."""
    costs = [(row.cost, row) for row in rows if row.fits and row.cost is not None]
    if not costs:
        return ""
    least = min(cost for cost, _ in costs)
    several = len({row.question.weights for row in rows}) > 1
    cheapest = [
        f"{row.gpus} × {row.device.name}{f' with weights in {_format(row)}' if several else ''}"
        for cost, row in costs
        if cost == least
    ]
    if len(cheapest) == 1:
        return f"The cheapest choice is {cheapest[0]}, for {least:,.2f} per hour."
    if len(cheapest) > NAMED:
        cheapest[NAMED:] = [plural(len(cheapest) - NAMED, "other choice")]
    return f"The cheapest choices are {word_list(cheapest)}, for {least:,.2f} per hour each."


def _more_gpus(rows: list[Fitted]) -> list[str]:
    """Return a line with the numbers of GPUs with which the rows fit that do not fit now."""
    several = len({row.question.weights for row in rows}) > 1
    found = [
        f"{row.device.name} {f'with weights in {_format(row)} ' if several else ''}{change.option}"
        + (f" ({row.price * change.fit.question.layout.num_gpus:,.2f} per hour)" if row.price is not None else "")
        for row in rows
        for change in row.changes
        if change.orders == (MORE_GPUS,)
    ]
    return [f"with more GPUs it fits: {', '.join(found)}"] if found else []


def _doubts(rows: list[Fitted]) -> tuple[tuple[str, ...], list[str]]:
    """Return the reasons why all rows are approximate, and a line for each reason that holds for some devices only."""
    devices: dict[str, list[str]] = {}
    for row in rows:
        for reason in row.doubts:
            devices.setdefault(reason, []).append(row.device.name)
    common = tuple(reason for reason, names in devices.items() if len(names) == len(rows))
    return common, [
        f"approximate on {', '.join(dict.fromkeys(names))}: {reason}"
        for reason, names in devices.items()
        if reason not in common
    ]


def _smallest(first: Fitted, fitting: list[Fitted]) -> str:
    question = first.question
    users = f"{plural(question.users, 'request')} of {question.seq:,} tokens"
    if first.fixed and fitting:
        where = f"{fitting[0].gpus} × {fitting[0].device.name}" if fitting[0].gpus != 1 else fitting[0].device.name
        larger = f", and on {plural(len(fitting) - 1, 'other device')}" if len(fitting) > 1 else ""
        return f"{first.spec.name} with {users} fits on {where}{larger}."
    single = [row.device.name for row in fitting if row.gpus == 1]
    if single:
        return f"{first.spec.name} with {users} fits on one {single[0]}" + (
            f", and on {plural(len(single) - 1, 'larger device')}." if len(single) > 1 else "."
        )
    if fitting:
        fewest = min(fitting, key=lambda row: row.gpus or 0)
        return (
            f"{first.spec.name} with {users} needs several GPUs, for example {fewest.gpus} × {fewest.device.name} "
            f"({fewest.layout})."
        )
    most = plural(first.gpus or 1, "GPU") if first.fixed else f"up to {_most(first)} GPUs"
    return f"{first.spec.name} with {users} fits on no built-in device, with {most}{_tried(first)}."


def _most(row: Fitted) -> int:
    """Return the largest number of GPUs that was tried."""
    return (row.gpus or 1) if row.fixed else counts(row.engine, row.device)[-1]


def _tried(row: Fitted) -> str:
    """Return the ways to divide the model that were tried, in brackets."""
    return f" ({row.tried})" if row.tried else ""


def _left_out(rows: list[Fitted], *, swept: bool) -> list[str]:
    """Return lines about the built-in devices that the table leaves out."""
    if rows[0].asked:
        return []

    def named(chosen: list[Fitted]) -> str:
        return ", ".join(dict.fromkeys(row.device.name for row in chosen))

    lacking = [row for row in rows if row.fit is not None and row.fit.missing_format]
    other = [row for row in rows if row.fit is not None and not row.fit.runs and row not in lacking]
    small = [] if swept else [row for row in rows if not row.fits and row not in lacking and row not in other]
    lines = []
    priced = [row for row in rows if row.fits and row.price is not None]
    unpriced = [row for row in rows if row.fits and row.price is None]
    if priced and unpriced and not swept:
        suffice = "suffices" if len(unpriced) == 1 else "suffice"
        lines.append(f"{plural(len(unpriced), 'other device')} without a price {suffice}: --wide shows all")
    for most in sorted({_most(row) for row in small}, reverse=True):
        these = [row for row in small if _most(row) == most]
        tried = f" with {these[0].tried}" if these[0].tried else ""
        own = "these" if these[0].engine.replaced or these[0].question.utilization is not None else "default"
        lines.append(f"{most} of these are not enough{tried}, and {own} settings" if most > 1 else "too small")
        lines[-1] += f": {named(these)}"
    if other:
        lines.append(f"no profile of {rows[0].engine.spec.title} on these: {named(other)}")
    if lacking:
        lines.append(f"these do not compute the number format of the weights: {named(lacking)}")
    return lines


def _format(row: Fitted) -> str:
    """Return the format of the weights."""
    return row.question.weights or "" if row.fit is None else row.fit.tightest.shard.format
