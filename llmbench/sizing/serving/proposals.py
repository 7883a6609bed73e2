"""The proposals of one changed setting, with which a model may fit.

A proposer yields the proposals for one setting, the nearest one first.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

import msgspec

from llmbench.errors import LayoutError, LLMBenchError
from llmbench.sizing.memory import CONTEXT_BYTES
from llmbench.sizing.serving.fit import Fit, Question, Sizer, best_fit, replaced
from llmbench.sizing.serving.layouts import counts, layout_text
from llmbench.sizing.serving.shard import made_on_loading
from llmbench.sizing.workload import Layout

HIGHEST_UTILIZATION = 0.95
"""The highest utilization that is proposed. The rest is for the CUDA context and for what the budget does not count."""

LEAST_TOKENS = 512
"""The smallest step that is proposed, in tokens. Prefills get slower with smaller steps."""

WEIGHTS = ("fp16", "fp8-channel", "int8", "mxfp4", "nvfp4", "gptq", "awq", "w4a16")
"""Formats of weights in which people publish files, the largest one first."""

GGUF_WEIGHTS = tuple(
    f"gguf-{name}"
    for name in (
        *("q8-0", "q6-k", "q5-1", "q5-k-m", "q5-k-s", "q5-0", "q4-1", "q4-k-m", "iq4-nl", "q4-k-s", "q4-0", "iq4-xs"),
        *("q3-k-l", "q3-k-m", "iq3-m", "iq3-s", "q3-k-s", "iq3-xs", "iq3-xxs", "q2-k", "q2-k-s"),
        *("iq2-m", "iq2-s", "iq2-xs", "iq2-xxs", "iq1-m", "iq1-s"),
    )
)
"""The GGUF recipes that quantise any model, the largest one first. TQ1_0 and TQ2_0 are for ternary weights.

In small models, whose largest matrix is the embedding, a few neighbours have the other order."""

FREE, FORMAT, CONVERTED, CUT, OTHER_FILES, MORE_GPUS, LARGE_CUT = range(7)
"""The order of changes.

FREE: a setting of the engine, or a layout of the same GPUs, that takes nothing from the users. FORMAT: a smaller
format of the cache. CONVERTED: weights that the engine converts when it loads them. CUT: shorter or fewer requests, at
least half of what was asked for. OTHER_FILES: weights in a format that the published files do not have. MORE_GPUS: more
GPUs. LARGE_CUT: requests that are less than half as long or as many.
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


def _layout(sizer: Sizer, fit: Fit, asked: Question) -> Iterator[Proposal]:
    """Another layout of the same GPUs: the first one that suffices, or the one with the most users."""
    question, own = fit.question, fit.question.layout
    try:
        layout = best_fit(sizer, question, own.num_gpus).question.layout
    except LayoutError:
        return
    if layout_text(layout) != layout_text(own):
        yield Proposal(
            ("--layout", layout_text(layout)),
            f"{_described(layout, moe=sizer.spec.is_moe)} on the same GPUs",
            _replace(question, layout=layout),
            FREE,
            lambda answer: answer.question.layout.tp,
        )


def _described(layout: Layout, *, moe: bool) -> str:
    """Return what a layout has besides tensor parallelism."""
    if layout.dp > 1:
        return f"{layout.dp} {'copies of the attention' if moe else 'replicas of the model'}"
    if layout.pp > 1:
        return f"{layout.pp} pipeline stages"
    return "whole experts" if layout.ep > 1 else "tensor parallelism"


def _cache_format(sizer: Sizer, fit: Fit, asked: Question) -> Iterator[Proposal]:
    """A smaller format of the cache, the largest one first.

    A format that the profile of the engine lists after another one is proposed only if it takes fewer bytes. Formats
    of 4-bit floats need a device that computes them.
    """
    question = fit.question
    fewest = _request_bytes(fit)
    for cache in question.engine.spec.kv_formats or ("fp8",):
        if cache in ("fp4", "nvfp4") and "fp4" not in question.device.matrix_formats:
            continue
        changed = _replace(question, kv=cache)
        try:
            taken = _request_bytes(sizer.fit(changed))
        except LLMBenchError:
            continue
        if taken < fewest:
            fewest = taken
            yield Proposal(("--kv-dtype", cache), f"a cache in {cache}", changed, FORMAT, _request_bytes)


def _request_bytes(fit: Fit) -> int:
    """Return the bytes of a request in the cache of one GPU. They are 1 for a model without a cache."""
    return fit.tightest.pool.request_bytes(fit.question.seq) or 1


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
    yield from _more_gpus(sizer, fit, lambda layout: ("--gpus", str(layout.num_gpus)))


def _gpus_of_layout(sizer: Sizer, fit: Fit, asked: Question) -> Iterator[Proposal]:
    """More GPUs, with their layout."""
    yield from _more_gpus(sizer, fit, lambda layout: ("--layout", layout_text(layout)))


def _more_gpus(sizer: Sizer, fit: Fit, option: Callable[[Layout], tuple[str, str]]) -> Iterator[Proposal]:
    question = fit.question
    own = question.layout.num_gpus
    stages = "tp" not in question.engine.layouts  # stages of any number of GPUs
    for gpus in counts(question.engine, question.device):
        if gpus <= own or (gpus % own and not stages):
            continue
        try:
            layout = best_fit(sizer, question, gpus).question.layout
        except LayoutError:
            continue
        yield Proposal(
            option(layout),
            f"{gpus} GPUs ({layout_text(layout)})",
            _replace(question, layout=layout),
            MORE_GPUS,
            lambda answer: answer.question.layout.num_gpus,
        )


def _converted_weights(sizer: Sizer, fit: Fit, asked: Question) -> Iterator[Proposal]:
    """Weights in a format that the engine makes from plain weights when it loads them, the largest one first."""
    names = [name for name in ("fp16",) if made_on_loading(sizer.spec, name)] + _made(sizer, fit.question)
    proposals = [_weights(fit, name, CONVERTED, "to which the engine converts them") for name in names]
    yield from sorted(proposals, key=lambda proposal: -_stored(sizer, proposal.question))


def _other_weights(sizer: Sizer, fit: Fit, asked: Question) -> Iterator[Proposal]:
    """Weights in a smaller format, which needs other files than the published ones, the largest one first.

    A format in fp8 needs no other files if the engine makes one when it loads the weights.
    """
    if fit.question.engine.spec.rule == "llamacpp":
        return
    fp8 = any(name.startswith("fp8") for name in _made(sizer, fit.question))
    for name in WEIGHTS:
        if not (made_on_loading(sizer.spec, name) or (fp8 and name.startswith("fp8"))):
            yield _weights(fit, name, OTHER_FILES, "which needs other files")


def gguf_weights(sizer: Sizer, fit: Fit, asked: Question) -> Iterator[Proposal]:
    """GGUF files in a smaller recipe, the largest one first."""
    if fit.question.engine.spec.rule != "llamacpp":
        return
    own = fit.tightest.shard.format_name
    for name in GGUF_WEIGHTS[GGUF_WEIGHTS.index(own) + 1 if own in GGUF_WEIGHTS else 0 :]:
        yield _weights(fit, name, OTHER_FILES, "which needs other files")


def _weights(fit: Fit, name: str, order: int, needs: str) -> Proposal:
    return Proposal(
        ("--weights", name),
        f"weights in {name}, {needs}",
        _replace(fit.question, weights=name),
        order,
        lambda answer: answer.budgets[0].shard.weights,
    )


def _made(sizer: Sizer, question: Question) -> list[str]:
    """Return the formats to which the engine converts the published weights if a flag asks for it."""
    plain = made_on_loading(sizer.spec, "bf16")
    return [made.format for made in question.engine.on_load if plain and not made.whole]


def _stored(sizer: Sizer, question: Question) -> int:
    """Return the bytes of the weights of a GPU. 0: the engine does not load this format."""
    try:
        return max(part.weights for part in sizer.shards(question))
    except LLMBenchError:
        return 0


GPUS = (_gpus, _gpus_of_layout)
"""The proposers of more GPUs."""

FILES = (_converted_weights, _other_weights, gguf_weights)
"""The proposers of formats of the weights."""


_ENGINE = (_sequences, _batched_tokens, _utilization)
"""The proposers of settings of the engine."""


def proposers(own_layout: bool) -> list[Proposer]:
    """Return the proposers in the order in which pairs combine them.

    Shorter or fewer requests come last: a first change makes room for some requests, and they say for how many.

    own_layout: whether the user gave the layout.
    """
    layouts, gpus = ([_layout], _gpus_of_layout) if own_layout else ([], _gpus)
    return [*_ENGINE, *layouts, _cache_format, gpus, *FILES, _shorter, _fewer_users]
