"""Whether a model fits on some GPUs with an engine, and which change of one setting makes it fit."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import msgspec

from llmbench.errors import LayoutError, LLMBenchError, SpecError
from llmbench.sizing.serving.budget import Budget, budget
from llmbench.sizing.serving.shard import Shard, shards
from llmbench.sizing.workload import Layout
from llmbench.spec.catalog import DeviceHead
from llmbench.spec.engine import SET, Constant, Engine
from llmbench.spec.model import ModelSpec

LONGEST = 2**27
"""The longest sequence that is tried, in tokens."""

COUNTS = (1, 2, 4, 8, 16, 32)
"""The numbers of GPUs that are tried."""


class Question(msgspec.Struct, frozen=True, kw_only=True):
    """Whether `users` requests of `seq` tokens fit at the same time.

    weights: format of the weights. None: the published files. kv: format of the cache. None: that of the activations.
    utilization: None stands for the default of the engine.
    """

    engine: Engine
    device: DeviceHead
    layout: Layout
    seq: int
    users: int
    weights: str | None = None
    kv: str | None = None
    utilization: float | None = None


class Fit(msgspec.Struct, frozen=True, kw_only=True):
    """The answer for some equal GPUs.

    budgets: the budget of one GPU of each pipeline stage.
    missing_format: number format of the matrix products, if the device does not compute it.
    room: number of requests of `seq` tokens for which the cache has memory, on all replicas.
    capacity: number of them that run at the same time: `room`, or the engine's limit of sequences if that is smaller.
    longest: longest request that fits alone, in tokens. longest_each: longest length of `users` requests. 0: none fits.
    filled: share of the memory that the engine may use, which weights, activations and the caches of the users take.
    """

    question: Question
    budgets: tuple[Budget, ...]
    missing_format: str | None
    room: int
    capacity: int
    longest: int
    longest_each: int
    filled: float

    @property
    def runs(self) -> bool:
        """Whether the profile of the engine describes the device, and the device computes the format."""
        vendors = self.question.engine.spec.vendors
        return self.missing_format is None and (not vendors or self.question.device.vendor in vendors)

    @property
    def fits(self) -> bool:
        """Whether the engine runs on the device, and all users fit."""
        return self.runs and self.capacity >= self.question.users

    def doubts(self, *, moe: bool) -> list[str]:
        """Return why constants of the engine may be inexact. moe: whether the model is a mixture of experts."""
        weights = self.tightest.shard.format.partition(",")[0]
        return self.tightest.engine.doubts(self.question.device, experts=moe, weights=weights)

    @property
    def limited(self) -> bool:
        """Whether the engine's limit of sequences is smaller than the number of requests that the cache can store."""
        return self.capacity < self.room

    @property
    def tightest(self) -> Budget:
        """The budget of the stage with the smallest cache."""
        return min(self.budgets, key=lambda own: own.pool.requests(self.question.seq))


class Sizer:
    """Answers questions about one model. It computes each part of the model once."""

    def __init__(self, spec: ModelSpec) -> None:
        self.spec = spec
        self._shards: dict[tuple[str, str, str | None, str | None], list[Shard]] = {}

    def shards(self, question: Question) -> list[Shard]:
        """Return the parts of the model on one GPU of each stage."""
        key = (question.engine.text, str(question.layout), question.weights, question.kv)
        if key not in self._shards:
            self._shards[key] = shards(
                self.spec, question.layout, question.engine, weights=question.weights, kv=question.kv
            )
        return self._shards[key]

    def fit(self, question: Question) -> Fit:
        """Return the answer. Raises LLMBenchError if the engine cannot run the model as the question says."""
        layout, device = question.layout, question.device
        each = -(-question.users // layout.dp)
        engine = _room_for(question.engine, each, device)
        budgets = tuple(
            budget(engine, device, shard, layout, seq=question.seq, utilization=question.utilization)
            for shard in self.shards(question)
        )
        products = budgets[0].shard.products
        room = layout.dp * min(own.pool.requests(question.seq) for own in budgets)
        limit = budgets[0].sequences  # 0: the engine has no limit
        needed = [own.usable - own.cache + each * own.pool.request_bytes(question.seq) for own in budgets]
        return Fit(
            question=question,
            budgets=budgets,
            missing_format=None if products == "fp32" or products in device.matrix_formats else products,
            room=room,
            capacity=min(room, limit * layout.dp) if limit else room,
            longest=_longest(budgets, 1),
            longest_each=0 if 0 < limit < each else _longest(budgets, each),
            filled=max(need / own.usable for need, own in zip(needed, budgets, strict=True)),
        )


def _room_for(engine: Engine, users: int, device: DeviceHead) -> Engine:
    """Return the engine with at least as many sequences per step as users, unless the user set this limit."""
    if "sequences" not in engine.constants or "sequences" in engine.replaced:
        return engine
    if users <= engine.whole("sequences", device=device):
        return engine
    return replaced(engine, "sequences", users)


def replaced(engine: Engine, key: str, value: int) -> Engine:
    """Return the engine with another value of a constant."""
    return engine._replace(
        constants={**engine.constants, key: Constant(value=value, source=SET)},
        replaced=tuple(dict.fromkeys((*engine.replaced, key))),
    )


def _longest(budgets: tuple[Budget, ...], users: int) -> int:
    """Return the largest number of tokens that each of `users` requests can have."""

    def fits(length: int) -> bool:
        return all(own.pool.requests(length) >= users for own in budgets)

    low, high = 0, 1
    while high <= LONGEST and fits(high):
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return min(low, LONGEST)


def split(sizer: Sizer, question: Question, gpus: int) -> Layout:
    """Return a layout for `gpus` GPUs: tensor parallelism as far as the heads allow, then pipeline stages.

    llama.cpp divides the layers over the GPUs by default.

    Raises LayoutError if the model cannot be divided so.
    """
    problem: LayoutError | None = None
    for tp in range(gpus if question.engine.spec.rule != "llamacpp" else 1, 0, -1):
        if gpus % tp:
            continue
        layout = Layout(tp=tp, pp=gpus // tp)
        try:
            sizer.shards(msgspec.structs.replace(question, layout=layout))
        except LayoutError as refusal:
            problem = problem or refusal
            continue
        return layout
    assert problem is not None
    raise problem


def smallest_count(sizer: Sizer, question: Question) -> Fit | None:
    """Return the answer for the smallest number of GPUs that suffices, or None if no number of COUNTS does.

    If the engine does not run on the device, return the answer for one GPU.
    """
    for gpus in COUNTS:
        try:
            layout = split(sizer, question, gpus)
            fit = sizer.fit(msgspec.structs.replace(question, layout=layout))
        except LayoutError:
            continue
        if fit.fits or not fit.runs:
            return fit
    return None


class Change(NamedTuple):
    """A change of one setting with which the model fits.

    option: the option with its new value. what: what changes, for people.
    rank: 0 for a limit of the engine, whose change the users do not notice. 1 for all other settings.
    factor: by which factor the setting changes. Among changes of one rank, the nearest has the smallest factor.
    fit: the answer with the change.
    """

    option: str
    what: str
    rank: int
    factor: float
    fit: Fit


def changes(sizer: Sizer, fit: Fit) -> list[Change]:
    """Return the changes of one setting with which the model fits, the nearest one first."""
    found = []
    for option, what, rank, factor, question in _candidates(sizer, fit):
        try:
            changed = sizer.fit(question)
        except LLMBenchError:
            continue
        if question.weights != fit.question.weights:
            factor = max(1.0, fit.budgets[0].shard.weights / changed.budgets[0].shard.weights)
        if changed.fits:
            found.append(Change(option, what, rank, factor, changed))
    return sorted(found, key=lambda change: (change.rank, change.factor))


WEIGHTS = ("fp16", "fp8-channel", "w4a16")
GGUF_WEIGHTS = ("gguf-q8-0", "gguf-q4-k-m", "gguf-q2-k")
"""Formats of weights that a suggestion names. Their factor is that of the bytes of the weights."""


def _candidates(sizer: Sizer, fit: Fit) -> Iterator[tuple[str, str, int, float, Question]]:
    question = fit.question
    change = msgspec.structs.replace
    if 0 < fit.longest_each < question.seq:
        shorter = fit.longest_each
        shorter -= shorter % 16 if shorter > 16 else 0
        factor = question.seq / shorter
        yield f"--seq {shorter}", f"requests of at most {shorter:,} tokens", 1, factor, change(question, seq=shorter)
    if 0 < fit.capacity < question.users:
        factor = question.users / fit.capacity
        yield f"--users {fit.capacity}", f"{fit.capacity:,} users", 1, factor, change(question, users=fit.capacity)
    rule = question.engine.spec.rule
    cache = "q8_0" if rule == "llamacpp" else "fp8"
    if question.kv is None:
        yield f"--kv-dtype {cache}", f"a cache in {cache}", 1, 2.0, change(question, kv=cache)
    limit = question.engine.whole("sequences", device=question.device)
    each = -(-question.users // question.layout.dp)
    # A step needs room for the users. A smaller limit frees memory, and a larger one admits more users.
    if each > limit > 0 if "sequences" in question.engine.replaced else each < limit:
        engine = replaced(question.engine, "sequences", each)
        what = f"steps of at most {each:,} sequences"
        factor = max(limit, each) / min(limit, each)
        yield f"--engine {engine.text}", what, 0, factor, change(question, engine=engine)
    formats = GGUF_WEIGHTS if rule == "llamacpp" else WEIGHTS
    for name in formats:
        yield f"--weights {name}", f"weights in {name}", 1, 1.0, change(question, weights=name)
    own = question.layout.num_gpus
    for gpus in COUNTS:
        if gpus > own and gpus % own == 0 and question.layout.dp == 1:
            try:
                layout = split(sizer, question, gpus)
            except (LayoutError, SpecError):
                continue
            larger = change(question, layout=layout)
            yield f"--gpus {gpus}", f"{gpus} GPUs ({layout})", 1, gpus / own, larger
            if sizer.fit(larger).fits:
                return
