"""The screen of `llmbench fit` about one device: the answer in a sentence, the terms of the budget, and changes."""

from __future__ import annotations

from typing import Any

from llmbench.answers.about import model_block
from llmbench.answers.fit_row import CONSTANTS, Fitted
from llmbench.report.document import Block, Command, Table, table
from llmbench.report.fields import Field
from llmbench.report.units import plural, size, word_list
from llmbench.sizing.serving.command import Start, placeholder
from llmbench.sizing.serving.fit import LONGEST, Fit, Question
from llmbench.sizing.serving.layouts import SERVER
from llmbench.sizing.serving.pools import RatioPool
from llmbench.sizing.serving.shard import Rows
from llmbench.spec.engine import Engine

CHANGES = 4
"""The largest number of changes that the screen names."""


def blocks(rows: list[Fitted]) -> list[Block]:
    """Return the answer of each row: one budget, or a table of devices and settings."""
    if len(rows) == 1 and rows[0].fit is not None:
        shown = [_one(rows[0])]
    else:
        from llmbench.answers.fit_table import several  # one budget needs no table of devices

        shown = [several(rows)]
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
    if row.start is not None and fit.fits:
        block.commands = [Command(_asked(row.question), row.start.command)]
        if row.start.others is not None:
            ranks = word_list([str(rank) for rank in row.start.ranks])
            where = (
                f"on each other server; RANK is {ranks} there:" if len(row.start.ranks) > 1 else "on the other server:"
            )
            block.commands.append(Command(where, row.start.others))
    return block


def _answer(row: Fitted, fit: Fit) -> str:
    question = fit.question
    gpus = question.layout.num_gpus
    name, where = row.spec.name, row.device.name if gpus == 1 else f"{gpus} × {row.device.name}"
    users = f"{plural(question.users, 'request')} of {plural(question.seq, 'token')}"
    if not fit.runs:
        return f"{name} does not run on {where}: {row.cannot_run}."
    if fit.fits:
        most = f"{plural(fit.capacity, 'such request')} fit" if fit.capacity > 1 else "No second such request fits"
        if fit.limited:
            most = f"The engine runs at most {fit.capacity:,} of them at the same time"
        return (
            f"{name} fits on {where}: {users} {'fill' if question.users > 1 else 'fills'} {_filled(fit)} of "
            f"the usable memory. {most}. Alone, one request can have {_tokens(row, fit.longest)}."
        )
    own = fit.tightest
    if own.cache <= 0:
        return (
            f"{name} does not fit on {where}: without a cache it needs {size(own.usable - own.cache)}"
            f"{' per GPU' if gpus > 1 else ''}, and {own.engine.spec.title} may use {size(own.usable)}."
        )
    if fit.limited:
        return (
            f"{name} does not fit on {where}: the engine runs at most "
            f"{plural(fit.capacity, 'request')} at the same time, and {question.users:,} are asked for."
        )
    needs = "need" if question.users > 1 else "needs"
    some = f"Only {fit.capacity:,} {'fits' if fit.capacity == 1 else 'fit'}." if fit.capacity else "None of them fits."
    if question.users == 1:
        some = f"One request can have {_tokens(row, fit.longest)}." if fit.longest else "No request fits."
    return f"{name} does not fit on {where}: {users} {needs} {_filled(fit)} of the usable memory. {some}"


def _filled(fit: Fit) -> str:
    """Return the share of the memory that is filled. Only a share of exactly 1 is shown as 100%."""
    for text, full in ((f"{fit.filled:,.0%}", "100%"), (f"{fit.filled:,.1%}", "100.0%")):
        if fit.filled == 1 or text != full:
            return text
    return ">99.9%" if fit.filled < 1 else "slightly more than 100%"


def _asked(question: Question) -> str:
    """Return what the command that starts the engine is for. Its limits are those of the budget."""
    each = " each" if question.users > 1 else ""
    requests = f"{plural(question.users, 'request')} of up to {plural(question.seq, 'token')}{each}"
    return f"start it with this budget, which has room for {requests}:"


def _tokens(row: Fitted, longest: int) -> str:
    """Return the length of the longest request as a text."""
    context = row.spec.max_position_embeddings
    if context is None and longest >= LONGEST:
        return "any number of tokens"
    return f"up to {plural(longest, 'token')}{', the context length of the model' if longest == context else ''}"


def _context(row: Fitted) -> str:
    fit = row.fit
    assert fit is not None
    own, question = fit.tightest, fit.question
    layout = "one GPU" if row.gpus == 1 else f"{row.gpus} GPUs: {row.layout}"
    draft = f"draft model {row.draft.name} · " if row.draft is not None else ""
    return (
        f"{row.device.name} · {layout} · {row.engine.title}\nweights {own.shard.title} · {draft}cache "
        f"{question.kv or own.shard.activations}{f' · utilization {own.share:g}' if own.share < 1 else ''}"
    )


def _terms(fit: Fit) -> Table:
    own = fit.tightest
    columns: tuple[Field[Any], ...] = (
        Field("term", "one GPU" if fit.question.layout.pp == 1 else f"one GPU of stage {own.shard.stage + 1}"),
        Field("value", "memory", "gib"),
        Field("share", "share", "percent", value=lambda term: term["value"] / own.device.total_bytes),
    )
    terms = [{"term": term.term, "value": term.value} for term in own.terms]
    return table(columns, terms, total={"term": f"total {own.device.total_from}", "value": own.device.total_bytes})


def _lines(row: Fitted, fit: Fit) -> list[str]:
    own, question = fit.tightest, fit.question
    engine = row.engine.spec.title
    lines = []
    if fit.converts:
        lines.append(
            f"the matrix units of {row.device.name} do not compute {own.shard.products}: {engine} "
            f"multiplies in {own.shard.activations}, and converts the weights while it does so"
        )
    if own.cache > 0:
        lines += _cache(row, fit)
    if own.batched_tokens and own.sequences:
        lines.append(f"one step of {engine} has at most {own.batched_tokens:,} tokens and {own.sequences:,} sequences")
    if row.cost is not None:
        lines.append(f"price: {row.cost:,.2f} per hour, {row.cost / max(1, question.users):,.3f} per user and hour")
    if row.tried and not fit.fits:
        lines.append(
            f"no layout of {row.gpus} GPUs that llmbench tries suffices ({row.tried}); the table is that of "
            f"{row.layout}"
        )
    if row.changes:
        lines += _changes(row)
    elif not fit.fits and fit.runs:
        lines.append("no change of one or two settings that llmbench tries makes it fit")
    if row.start is not None and fit.fits:
        lines += [*_files(row, fit), *_servers(row.start, question)]
    return lines


def _servers(start: Start, question: Question) -> list[str]:
    """Return lines about what several servers need."""
    if not (start.others or start.several):
        return []
    gpus = question.layout.num_gpus
    lines = [f"{gpus} GPUs are {-(-gpus // SERVER)} servers with {SERVER} GPUs each"]
    if start.others is not None:
        lines[0] += "; FIRST-SERVER stands for the address of the first one"
    return lines + ([start.several] if start.several else [])


def _files(row: Fitted, fit: Fit) -> list[str]:
    """Return a line about the files that the start command loads, if they are not the published ones as they are."""
    title, flag = fit.tightest.shard.title, fit.on_load
    own_file = fit.tightest.shard.format.endswith(".gguf")
    published_file = fit.published and (row.files or "").endswith(".gguf")
    if own_file or published_file:
        return []
    if fit.question.engine.spec.rule == "llamacpp":
        return [f"the file in the command is named as usual; yours must be in this format: {title}"]
    if flag is not None:
        return [f"{row.engine.spec.title} converts the published weights when it loads them ({flag.flag})"]
    if fit.published:
        return []
    return [f"{placeholder(fit)} stands for files in this format: {title}"]


def _cache(row: Fitted, fit: Fit) -> list[str]:
    """Return lines about the tokens of the cache, the bytes of a request, and layers that do not keep all tokens."""
    own, question = fit.tightest, fit.question
    pool = own.pool
    request = f"a request of {plural(question.seq, 'token')} takes {size(pool.request_bytes(question.seq))}"
    if pool.counts_all and pool.tokens:
        lines = [
            f"{request} of the cache",
            f"{row.engine.spec.title} logs a cache of {pool.tokens:,} tokens: it counts as if every layer kept all "
            "tokens",
        ]
    else:
        lines = [f"{request} of the cache"]
        if pool.tokens:
            copies = question.layout.dp
            caches = "the cache has" if copies == 1 else f"each of {copies} copies has a cache of"
            lines = [f"{caches} {pool.tokens:,} tokens, and {request} of it"]
    if isinstance(pool, RatioPool):
        lines += _fixed_pools(pool, question.seq, row.engine.spec.title)
    draft = 0 if own.shard.draft is None else len(own.shard.draft.rows)
    lines += _narrow(own.shard.rows[: len(own.shard.rows) - draft], own.engine)
    if fit.fits and question.users > 1:
        lines.append(f"each of {question.users:,} requests can have {_tokens(row, fit.longest_each)}")
    return lines


def _fixed_pools(pool: RatioPool, length: int, engine: str) -> list[str]:
    """Return a line about the pools of fixed size. One of them can be full while another one still has room."""
    keep_all, windows, states = pool.requests_of_pools(length)
    pools = [
        f"{text} ({plural(count, 'such request')})"
        for count, text in (
            (keep_all, f"{pool.tokens:,} tokens of the layers that keep all tokens"),
            (windows, f"{pool.window_tokens or 0:,} tokens of the layers with a window"),
            (states, "states of a fixed size"),
        )
        if count is not None
    ]
    if len(pools) < 2:
        return []
    return [
        f"{engine} divides the cache into pools in a fixed ratio: {' and '.join(pools)}; the pool with "
        "room for the fewest requests is the limit"
    ]


def _narrow(layers: tuple[Rows, ...], engine: Engine) -> list[str]:
    """Return a line for each kind of layers that do not keep all tokens. They are why the bytes per token differ."""
    vllm = engine.spec.rule == "vllm"
    kinds = {"window": "keep only the last {:,} tokens", "chunk": "keep only a chunk of {:,} tokens"}
    kept: dict[str, int] = {}
    for rows in layers:
        if rows.visible == "all":
            continue
        text = kinds.get(rows.visible, "keep a state of fixed size instead of tokens").format(rows.tokens)
        text += " and those of one step" if vllm and rows.visible != "state" else ""
        kept[text] = kept.get(text, 0) + rows.layers
    if kept and vllm and not engine.whole("groups_layers"):
        kept = {text: count for text, count in kept.items() if "state" in text}
        windows = ["this version keeps all tokens of the layers with a window too"]
    else:
        windows = []
    if not kept:
        return windows
    said = " and ".join(f"{plural(count, 'layer')} {text}" for text, count in kept.items())
    return [*windows, f"{said}, so a long request takes fewer bytes per token than a short one"]


_CHANGED = {
    (1,): "one of these changes makes it fit, the nearest one first:",
    (2,): "no change of one setting makes it fit; one of these pairs does, the nearest one first:",
    (1, 2): "one of these changes, of one or two settings, makes it fit, the nearest one first:",
}
"""What the lines with changes begin with, by the numbers of settings that change."""


def _changes(row: Fitted) -> list[str]:
    """Return lines about the nearest changes, and about the nearest one with more GPUs if there is one."""
    shown = row.changes[:CHANGES]
    if not any(change.more_gpus for change in shown):
        more = [change for change in row.changes if change.more_gpus][:1]
        shown = [*row.changes[: CHANGES - len(more)], *more]
    settings = tuple(sorted({len(change.options) for change in shown}))
    return [_CHANGED[settings], *(f"  {change.option}: {change.what}" for change in shown)]
