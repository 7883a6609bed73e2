"""The changes of one or two settings with which a model fits.

A proposal is one changed setting. A proposer yields the proposals for one setting, the nearest one first. Every
proposal is checked with a complete answer, so a change that is named suffices.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from fractions import Fraction
from typing import NamedTuple

import msgspec

from llmbench.errors import LayoutError, LLMBenchError
from llmbench.sizing.memory import CONTEXT_BYTES
from llmbench.sizing.serving.fit import COUNTS, Fit, Question, Sizer, replaced, split
from llmbench.sizing.serving.shard import made_on_loading, serving_layout
from llmbench.sizing.workload import Layout

HIGHEST_UTILIZATION = 0.95
"""The highest utilization that is proposed. The rest is for the CUDA context and for what the budget does not count."""

LEAST_TOKENS = 512
"""The smallest step that is proposed, in tokens. Prefills get slower with smaller steps."""

WEIGHTS = ("fp16", "fp8-channel", "w4a16")
GGUF_WEIGHTS = ("gguf-q8-0", "gguf-q4-k-m", "gguf-q2-k")
"""Formats of weights that are proposed, the largest one first."""

FREE, FORMAT, CUT, MORE_GPUS, OTHER_FILES, LARGE_CUT = range(6)
"""The order of changes.

FREE: a setting of the engine, or a layout of the same GPUs, that takes nothing from the users. FORMAT: a smaller
format of the cache, or weights that the engine converts when it loads them. CUT: shorter or fewer requests, at least
half of what was asked for.
OTHER_FILES: weights in a format that the published files do not have. LARGE_CUT: requests that are less than half as
long or as many.
"""


class Proposal(NamedTuple):
    """One changed setting.

    option: the name of the option, and its new value. what: what changes, for people. order: one of FREE … LARGE_CUT.
    setting: the number in an answer that the change multiplies or divides. For a format, these are the bytes that it
        changes.
    """

    option: tuple[str, str]
    what: str
    question: Question
    order: int
    setting: Callable[[Fit], float]


class Change(NamedTuple):
    """A change of one or two settings with which the model fits.

    options: the options with their new values. what: what changes, for people.
    order: the largest of the orders of its settings. factor: the product of the factors of its settings.
    fit: the answer with the change.
    """

    options: dict[str, str]
    what: str
    order: int
    factor: float
    fit: Fit

    @property
    def option(self) -> str:
        """The options as the user types them: `--gpus 8 --kv-dtype fp8`."""
        return " ".join(f"{name} {value}" for name, value in self.options.items())

    @property
    def other_files(self) -> bool:
        """Whether the change needs other files than the published ones."""
        return self.order == OTHER_FILES


def changes(sizer: Sizer, fit: Fit, *, own_layout: bool = False, pairs: bool = True) -> list[Change]:
    """Return the changes of one setting with which the model fits, the nearest one first.

    The order is FREE, FORMAT, CUT, MORE_GPUS, OTHER_FILES, LARGE_CUT. Within one of them, the nearest change has the
    smallest factor: half as many users are as near as half the bytes of the cache. Of each setting, only the nearest
    change is returned. If no single change suffices, or only a LARGE_CUT, changes of two settings follow.

    own_layout: whether the user gave the layout, as with copies of the attention or groups of experts.
    pairs: whether to try changes of two settings.
    """
    engine, layout = fit.question.engine.spec, fit.question.layout
    if engine.vendors and fit.question.device.vendor not in engine.vendors:
        return []
    proposers = _proposers(own_layout or layout.ep > 1)
    tried: list[list[Change]] = [list(_tried(sizer, fit, proposer)) for proposer in proposers]
    found = [change for each in tried for change in each[-1:] if change.fit.fits]
    if pairs and all(change.order == LARGE_CUT for change in found):
        for place, (first, each) in enumerate(zip(proposers, tried, strict=True)):
            nearest: dict[tuple[str, str], Change] = {}  # by the second setting and its value
            for change in each if first in _EVERY else each[-1:]:
                for pair in _pairs(sizer, fit, change, proposers[place + 1 :]):
                    nearest.setdefault(list(pair.options.items())[-1], pair)
            found += nearest.values()
    return sorted(found, key=lambda change: (change.order, len(change.options), change.factor))


def _pairs(sizer: Sizer, fit: Fit, first: Change, proposers: list[Proposer]) -> Iterator[Change]:
    """Yield the changes that suffice after a first change that does not suffice, one of each setting."""
    if first.fit.fits or first.order == LARGE_CUT:
        return
    for proposer in proposers:
        for second in _tried(sizer, first.fit, proposer, asked=fit.question):
            if second.fit.fits and second.order < LARGE_CUT:
                yield Change(
                    first.options | second.options,
                    second.what
                    if second.options.keys() == first.options.keys()
                    else f"{first.what}, and {second.what}",
                    max(first.order, second.order),
                    first.factor * second.factor,
                    second.fit,
                )


def _tried(sizer: Sizer, fit: Fit, proposer: Proposer, *, asked: Question | None = None) -> Iterator[Change]:
    """Yield the proposals for one setting with their answers, up to the first one that suffices.

    asked: the question before all changes. None: that of `fit`.
    """
    for proposal in proposer(sizer, fit, asked or fit.question):
        try:
            changed = sizer.fit(proposal.question)
        except LLMBenchError:
            continue
        before, after = proposal.setting(fit), proposal.setting(changed)
        factor = max(before, after) / min(before, after)
        yield Change(dict([proposal.option]), proposal.what, proposal.order, factor, changed)
        if changed.fits:
            return


Proposer = Callable[[Sizer, Fit, Question], Iterator[Proposal]]
"""Yields proposals for one setting: from the model, from an answer that does not fit, and from what the user asked."""

_replace = msgspec.structs.replace


def _sequences(sizer: Sizer, fit: Fit, asked: Question) -> Iterator[Proposal]:
    """The number of sequences of a step. Fewer sequences free memory, and more of them admit more users."""
    question = fit.question
    limit = question.engine.whole("sequences", device=question.device)
    users = question.users_per_replica
    if users > limit > 0 if "sequences" in question.engine.replaced else users < limit:
        yield _engine_limit(question, "sequences", users, f"steps of at most {users:,} sequences")


def _batched_tokens(sizer: Sizer, fit: Fit, asked: Question) -> Iterator[Proposal]:
    """The number of tokens of a step: half of them, a quarter, … It is at least the number of sequences."""
    question = fit.question
    engine, device = question.engine, question.device
    if "chunked_prefill" in engine.constants and not engine.whole("chunked_prefill"):
        return
    least = max(LEAST_TOKENS, engine.whole("sequences", device=device))
    tokens = engine.whole("batched_tokens", device=device) // 2
    while tokens >= least:
        yield _engine_limit(question, "batched_tokens", tokens, f"steps of at most {tokens:,} tokens")
        tokens //= 2


def _engine_limit(question: Question, key: str, value: int, what: str) -> Proposal:
    engine = replaced(question.engine, key, value)
    return Proposal(
        ("--engine", engine.text),
        what,
        _replace(question, engine=engine),
        FREE,
        lambda answer: answer.question.engine.whole(key, device=question.device),
    )


def _utilization(sizer: Sizer, fit: Fit, asked: Question) -> Iterator[Proposal]:
    """A higher utilization, in steps of 1%. The rest must have room for a CUDA context.

    SGLang's default leaves what the activations need, and macOS's default what the system needs. They are the highest.
    """
    question, device = fit.question, fit.question.device
    default = sizer.fit(_replace(question, utilization=None)).tightest.share
    highest = default
    if question.engine.spec.rule != "sglang" and device.vendor != "apple":
        highest = max(default, min(HIGHEST_UTILIZATION, 1 - CONTEXT_BYTES / device.total_bytes))
    share = fit.tightest.share
    for percent in range(int(100 * share) + 1, int(100 * highest + 1e-9) + 1):
        yield Proposal(
            ("--utilization", f"{percent / 100:g}"),
            f"a utilization of {percent / 100:g} instead of {share:g}",
            _replace(question, utilization=percent / 100),
            FREE,
            lambda answer: answer.tightest.share,
        )


def _copies(sizer: Sizer, fit: Fit, asked: Question) -> Iterator[Proposal]:
    """More copies of the attention on the same GPUs: two times as many, four times, …

    Tensor parallelism does not split the cache of latent attention, nor that of fewer KV heads than GPUs: each GPU
    stores the same rows. With copies of the attention, each GPU stores those of other users.
    """
    question = fit.question
    layout, rows = question.layout, _stored(sizer, question)
    while layout.tp % 2 == 0:
        tp, dp = layout.tp // 2, layout.dp * 2
        experts = f",ep={tp * dp}" if fit.tightest.shard.moe else ""
        try:
            layout = serving_layout(f"tp={tp},dp={dp},pp={layout.pp}{experts}")
            if _stored(sizer, _replace(question, layout=layout)) != rows:
                return
        except LLMBenchError:
            return
        yield Proposal(
            ("--layout", str(layout)),
            f"{dp} copies of the attention on the same GPUs",
            _replace(question, layout=layout),
            FREE,
            lambda answer: answer.question.layout.dp,
        )


def _stored(sizer: Sizer, question: Question) -> list[tuple[str, Fraction, int]]:
    """Return the cache rows of one GPU of each stage: which tokens they are for, their bytes, and the layers."""
    parts = sizer.shards(question)
    return [(r.visible, r.row_bytes, r.layers) for part in parts for r in part.rows if r.visible != "state"]


def _cache_format(sizer: Sizer, fit: Fit, asked: Question) -> Iterator[Proposal]:
    """A smaller format of the cache."""
    question = fit.question
    if question.kv is None:
        cache = "q8_0" if question.engine.spec.rule == "llamacpp" else "fp8"
        yield Proposal(
            ("--kv-dtype", cache),
            f"a cache in {cache}",
            _replace(question, kv=cache),
            FORMAT,
            lambda answer: answer.tightest.pool.request_bytes(question.seq) or 1,
        )


def _shorter(sizer: Sizer, fit: Fit, asked: Question) -> Iterator[Proposal]:
    """Shorter requests, of whole blocks of the cache."""
    question = fit.question
    if 0 < fit.longest_each < question.seq:
        block = question.engine.whole("block_tokens", 1)
        shorter = max(fit.longest_each - fit.longest_each % block, 1)
        yield Proposal(
            ("--seq", str(shorter)),
            f"requests of at most {shorter:,} tokens",
            _replace(question, seq=shorter),
            CUT if 2 * shorter >= asked.seq else LARGE_CUT,
            lambda answer: answer.question.seq,
        )


def _fewer_users(sizer: Sizer, fit: Fit, asked: Question) -> Iterator[Proposal]:
    """Fewer requests at the same time."""
    question = fit.question
    if 0 < fit.capacity < question.users:
        yield Proposal(
            ("--users", str(fit.capacity)),
            f"{fit.capacity:,} users" if fit.capacity > 1 else "one user",
            _replace(question, users=fit.capacity),
            CUT if 2 * fit.capacity >= asked.users else LARGE_CUT,
            lambda answer: answer.question.users,
        )


def _gpus(sizer: Sizer, fit: Fit, asked: Question) -> Iterator[Proposal]:
    """More GPUs, divided as `--gpus` divides them."""
    yield from _more_gpus(sizer, fit, own_layout=False)


def _gpus_of_layout(sizer: Sizer, fit: Fit, asked: Question) -> Iterator[Proposal]:
    """More GPUs, divided by a layout like that of the user."""
    yield from _more_gpus(sizer, fit, own_layout=True)


def _more_gpus(sizer: Sizer, fit: Fit, *, own_layout: bool) -> Iterator[Proposal]:
    question = fit.question
    own = question.layout.num_gpus
    own_layout = own_layout or question.layout.dp > 1
    for gpus in COUNTS:
        if gpus <= own or gpus % own:
            continue
        try:
            layout = _larger(sizer, question, gpus)
        except LayoutError:
            continue
        copies = f" with {layout.dp} copies of the attention" if layout.dp > 1 else ""
        yield Proposal(
            ("--layout", str(layout)) if own_layout else ("--gpus", str(gpus)),
            f"{gpus} GPUs{copies}" if own_layout else f"{gpus} GPUs ({layout})",
            _replace(question, layout=layout),
            MORE_GPUS,
            lambda answer: answer.question.layout.num_gpus,
        )


def _larger(sizer: Sizer, question: Question, gpus: int) -> Layout:
    """Return the layout for more GPUs: more copies of the attention if it has several, and more groups of experts."""
    layout = question.layout
    times = gpus // layout.num_gpus
    if layout.dp == 1 and layout.ep == 1:
        return split(sizer, question, gpus)
    several = {"dp": layout.dp * times} if layout.dp > 1 else {"tp": layout.tp * times}
    experts = {"ep": layout.ep * times} if layout.ep > 1 else {"etp": layout.expert_tp * times}
    return _replace(layout, **several, **experts)


def _weights(sizer: Sizer, fit: Fit, asked: Question) -> Iterator[Proposal]:
    """Weights in a smaller format. An engine converts plain weights to fp16 itself, and all else needs other files."""
    question = fit.question
    rule = question.engine.spec.rule
    for name in GGUF_WEIGHTS if rule == "llamacpp" else WEIGHTS:
        own = made_on_loading(sizer.spec, name)
        yield Proposal(
            ("--weights", name),
            f"weights in {name}, {'to which the engine converts them' if own else 'which needs other files'}",
            _replace(question, weights=name),
            FORMAT if own else OTHER_FILES,
            lambda answer: answer.budgets[0].shard.weights,
        )


_EVERY = (_gpus, _gpus_of_layout, _weights)
"""The proposers of which each proposal may be the first of two. Of the others, only the largest change may be."""


def _proposers(own_layout: bool) -> list[Proposer]:
    gpus = _gpus_of_layout if own_layout else _gpus
    cuts = [_shorter, _fewer_users]
    return [_sequences, _batched_tokens, _utilization, _copies, _cache_format, *cuts, gpus, _weights]
