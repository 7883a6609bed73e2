"""The screen of `llmbench fit`: the answer in a sentence, the terms of the budget, and what would make a model fit."""

from __future__ import annotations

from typing import Any

import msgspec

from llmbench.answers.about import model_block
from llmbench.answers.fit import CONSTANTS, FIELDS, Fitted
from llmbench.report.document import Block, Table, table
from llmbench.report.fields import Field
from llmbench.report.units import plural, size
from llmbench.sizing.serving.fit import COUNTS, LONGEST, Fit

CHANGES = 4
"""The largest number of changes that the screen names."""


def blocks(rows: list[Fitted]) -> list[Block]:
    """Return the answer of each row: one budget, or a table of devices and formats."""
    shown = [_one(rows[0]) if len(rows) == 1 and rows[0].fit is not None else _several(rows)]
    for row in rows:
        if row.explain and row.fit is not None and (row.fits or len(rows) == 1):
            from llmbench.answers.formulas import formula_block

            where = "" if len(rows) == 1 else f"{row.device.name} · {row.fit.tightest.shard.title}"
            shown.append(formula_block(row.fit.tightest.terms, where))
            shown.append(Block(headline=f"constants of {row.engine.title}", table=table(CONSTANTS, row.constants)))
    return shown


def _one(row: Fitted) -> Block:
    fit = row.fit
    assert fit is not None  # a device that the user names has an answer
    described = fit.runs or fit.missing_format is not None
    block = model_block(
        row,
        context=_context(row),
        table=_terms(fit) if described else None,
        lines=_lines(row, fit) if described else [],
    )
    block.answer = _answer(row, fit)
    return block


def _answer(row: Fitted, fit: Fit) -> str:
    question = fit.question
    gpus = question.layout.num_gpus
    where = row.device.name if gpus == 1 else f"{gpus} × {row.device.name}"
    users = f"{plural(question.users, 'request')} of {question.seq:,} tokens"
    if not fit.runs:
        return f"{row.spec.name} does not run on {where}: {_why_not(row, fit)}."
    if fit.fits:
        most = f"{plural(fit.capacity, 'such request')} fit" if fit.capacity > 1 else "No second request fits"
        if fit.limited:
            most = f"The engine runs at most {fit.capacity:,} of them at the same time"
        return (
            f"{row.spec.name} fits on {where}: {users} {'fill' if question.users > 1 else 'fills'} {fit.filled:.0%} of "
            f"the usable memory. {most}, and one request can have {_tokens(fit.longest)}."
        )
    own = fit.tightest
    if own.cache <= 0:
        return (
            f"{row.spec.name} does not fit on {where}: without a cache it needs {size(own.usable - own.cache)} of the "
            f"usable {size(own.usable)}{' per GPU' if gpus > 1 else ''}."
        )
    if fit.limited:
        return (
            f"{row.spec.name} does not fit on {where}: the engine runs at most "
            f"{plural(fit.capacity, 'request')} at the same time, and {question.users:,} are asked for."
        )
    needs = "need" if question.users > 1 else "needs"
    some = f"Only {fit.capacity:,} fit." if fit.capacity else "None of them fits."
    return f"{row.spec.name} does not fit on {where}: {users} {needs} {fit.filled:.0%} of the usable memory. {some}"


def _tokens(longest: int) -> str:
    """Return the longest request as a text."""
    return "any number of tokens" if longest >= LONGEST else f"{longest:,} tokens"


def _why_not(row: Fitted, fit: Fit) -> str:
    """Return why the engine does not run on the device."""
    if fit.missing_format is not None:
        units = f"its matrix units do not compute {fit.missing_format}"
        if fit.missing_format == fit.tightest.shard.activations:
            return units
        return f"{units}, and llmbench knows no kernel of {row.engine.title} that converts the weights of this model"
    return f"llmbench has no profile of {row.engine.spec.title} on devices of {row.device.vendor.title()}"


def _context(row: Fitted) -> str:
    fit = row.fit
    assert fit is not None
    own, question = fit.tightest, fit.question
    layout = "one GPU" if question.layout.num_gpus == 1 else f"{question.layout.num_gpus} GPUs: {question.layout}"
    draft = f"draft model {row.draft.name} · " if row.draft is not None else ""
    return (
        f"{row.device.name} · {layout} · {row.engine.title}\nweights {own.shard.title} · {draft}cache "
        f"{question.kv or 'in the format of the activations'} · utilization {own.share:g}"
    )


def _terms(fit: Fit) -> Table:
    own = fit.tightest
    columns: tuple[Field[Any], ...] = (
        Field("term", "one GPU" if fit.question.layout.pp == 1 else f"one GPU of stage {own.shard.stage + 1}"),
        Field("value", "memory", "gib"),
        Field("share", "share", "percent", value=lambda term: term["value"] / own.device.total_bytes),
    )
    terms = [{"term": term.term, "value": term.value} for term in own.terms]
    return table(columns, terms, total={"term": "total", "value": own.device.total_bytes})


def _lines(row: Fitted, fit: Fit) -> list[str]:
    own, question = fit.tightest, fit.question
    lines = []
    if fit.converts:
        lines.append(
            f"the matrix units of {row.device.name} do not compute {own.shard.products}: {row.engine.spec.title} "
            f"multiplies in {own.shard.activations}, and converts the weights while it does so"
        )
    if own.cache > 0:
        cache = [f"the cache has {own.pool.tokens:,} tokens"] if own.pool.tokens else []
        if cache and fit.longest > own.pool.tokens:
            cache = [f"{cache[0]} if every layer kept all of them, as the engine logs it"]
        cache.append(f"a request of {question.seq:,} tokens takes {size(own.pool.request_bytes(question.seq))} of it")
        lines.append(", and ".join(cache))
        if fit.fits and question.users > 1:
            lines.append(f"each of {question.users:,} requests can have {_tokens(fit.longest_each)}")
    context = row.spec.max_position_embeddings
    if context is not None and fit.longest > context:
        lines.append(f"the context length of {row.spec.name} is {context:,} tokens")
    if own.batched_tokens and own.sequences:
        lines.append(f"steps of at most {own.batched_tokens:,} tokens and {own.sequences:,} sequences")
    if row.cost is not None:
        lines.append(f"price: {row.cost:,.2f} per hour, {row.cost / max(1, question.users):,.3f} per user and hour")
    if row.changes:
        lines.append("one of these changes makes it fit, the nearest one first:")
        lines += [f"  {change.option}: {change.what}" for change in row.changes[:CHANGES]]
    elif not fit.fits and fit.runs:
        lines.append("no change of a single setting that llmbench tries makes it fit")
    if row.command is not None and fit.fits:
        lines.append(f"start it: {row.command}")
        if question.weights is not None and question.weights != row.spec.weights.format:
            lines.append(f"the files must have the weights in this format: {own.shard.title}")
    return lines


def _several(rows: list[Fitted]) -> Block:
    first = rows[0]
    names = {"device", "fits", "gpus", "capacity", "longest_tokens", "filled", "price_per_hour"}
    columns = [field for field in FIELDS if field.name in names]
    if any(row.question.weights != first.question.weights for row in rows):
        columns.insert(1, Field("weights", "weights", value=lambda row: row.question.weights))
    shown = rows
    lines: list[str] = []
    if not first.asked:
        shown = [row for row in rows if row.fits]
        columns = [field for field in columns if field.name != "fits"]
        lines += _left_out(rows)
    question = first.question
    context = f"{first.engine.title} · {plural(question.users, 'request')} of {question.seq:,} tokens"
    context += f" · cache {question.kv}" if question.kv else ""
    lines += _cheapest(rows)
    common, some = _doubts([row for row in shown if row.fit is not None])
    about = msgspec.structs.replace(first, doubts=common)
    block = model_block(about, context=context, table=table(columns, shown) if shown else None, lines=lines + some)
    block.about = {}
    fitting = [row for row in rows if row.fits]
    if not first.asked:
        block.answer = _smallest(first, fitting)
    else:
        block.answer = f"{first.spec.name} fits in {len(fitting)} of {len(rows)} cases."
        block.lines += _more_gpus(rows)
    return block


def _cheapest(rows: list[Fitted]) -> list[str]:
    """Return a line with the cheapest of the rows that fit and have a price."""
    costs = [(row.cost, row) for row in rows if row.fits and row.cost is not None]
    if not costs:
        return []
    cost, row = min(costs, key=lambda pair: pair[0])
    weights = f" with weights in {row.question.weights}" if row.question.weights else ""
    return [f"cheapest: {row.gpus} × {row.device.name}{weights}, {cost:,.2f} per hour"]


def _more_gpus(rows: list[Fitted]) -> list[str]:
    """Return a line with the numbers of GPUs with which the rows fit that do not fit now."""
    several = len({row.question.weights for row in rows}) > 1
    found = [
        f"{row.device.name} {f'with weights in {row.question.weights} ' if several and row.question.weights else ''}"
        f"{change.option}"
        for row in rows
        for change in row.changes
        if change.option.startswith("--gpus")
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
    single = [row.device.name for row in fitting if row.gpus == 1]
    if single:
        return f"{first.spec.name} with {users} fits on one {single[0]}" + (
            f", and on {plural(len(single) - 1, 'larger device')}." if len(single) > 1 else "."
        )
    if fitting:
        fewest = min(fitting, key=lambda row: row.gpus or 0)
        return f"{first.spec.name} with {users} needs several GPUs, for example {fewest.gpus} × {fewest.device.name}."
    return f"{first.spec.name} with {users} fits on no built-in device, with up to {COUNTS[-1]} of them."


def _left_out(rows: list[Fitted]) -> list[str]:
    """Return lines about the devices that the table leaves out."""
    lacking = [row.device.name for row in rows if row.fit is not None and row.fit.missing_format]
    other = [row.device.name for row in rows if row.fit is not None and not row.fit.runs]
    small = [row.device.name for row in rows if not row.fits and row.device.name not in other]
    other = [name for name in other if name not in lacking]
    lines = []
    if small:
        lines.append(f"{COUNTS[-1]} of these are not enough: {', '.join(small)}")
    if other:
        lines.append(f"no profile of {rows[0].engine.spec.title} on these: {', '.join(other)}")
    if lacking:
        lines.append(f"these do not compute the number format of the weights: {', '.join(lacking)}")
    return lines
