"""Whether a model fits on some GPUs with an engine, and which change of one setting makes it fit."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

import msgspec

from llmbench.errors import LayoutError, LLMBenchError, SpecError
from llmbench.sizing.serving.budget import Budget, budget, converts, missing_format
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

    @property
    def users_per_replica(self) -> int:
        """The number of users of the replica that serves most of them."""
        return -(-self.users // self.layout.dp)


class Fit(msgspec.Struct, frozen=True, kw_only=True):
    """The answer for some equal GPUs.

    budgets: the budget of one GPU of each pipeline stage.
    missing_format: number format of the matrix products, if the engine cannot run them on the device.
    converts: whether a kernel of the engine converts the weights to the format of the activations, because the matrix
        units of the device do not compute their format.
    room: number of requests of `seq` tokens for which the cache has memory, on all replicas.
    capacity: number of them that run at the same time: `room`, or the engine's limit of sequences if that is smaller.
    longest: longest request that fits alone, in tokens. longest_each: longest length of `users` requests. 0: none fits.
    filled: share of the memory that the engine may use, which weights, activations and the caches of the users take.
    """

    question: Question
    budgets: tuple[Budget, ...]
    missing_format: str | None
    converts: bool
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

    @property
    def doubts(self) -> list[str]:
        """The reasons why the budget may be inexact."""
        device, shard = self.question.device, self.tightest.shard
        doubts = self.tightest.engine.doubts(device, experts=shard.moe, weights=shard.format_name)
        if device.vendor == "nvidia" and device.cuda_memory_bytes is None:
            doubts.append(
                "the total memory that a CUDA program sees is not known; the total of the driver or of the datasheet "
                "is used, which is slightly larger"
            )
        return doubts

    @property
    def limited(self) -> bool:
        """Whether the engine's limit of sequences is smaller than the number of requests that the cache can store."""
        return self.capacity < self.room

    @property
    def tightest(self) -> Budget:
        """The budget of the stage with the smallest cache."""
        return min(self.budgets, key=lambda own: own.pool.requests(self.question.seq))


class Sizer:
    """Answers questions about one model. It computes each part of the model once.

    draft: the model for speculative decoding that the same GPUs serve. None: there is none.
    """

    def __init__(self, spec: ModelSpec, draft: ModelSpec | None = None) -> None:
        self.spec = spec
        self.draft = draft
        self._shards: dict[tuple[str, str, str | None, str | None], list[Shard]] = {}

    def shards(self, question: Question) -> list[Shard]:
        """Return the parts of the model on one GPU of each stage."""
        key = (question.engine.text, str(question.layout), question.weights, question.kv)
        if key not in self._shards:
            self._shards[key] = shards(
                self.spec,
                question.layout,
                question.engine,
                weights=question.weights,
                kv=question.kv,
                draft=self.draft,
            )
        return self._shards[key]

    def fit(self, question: Question) -> Fit:
        """Return the answer. Raises LLMBenchError if the engine cannot run the model as the question says."""
        layout, device = question.layout, question.device
        users = question.users_per_replica
        engine = _room_for(question.engine, users, device)
        parts = self.shards(question)
        budgets = tuple(
            budget(engine, device, shard, layout, seq=question.seq, utilization=question.utilization) for shard in parts
        )
        room = layout.dp * min(own.pool.requests(question.seq) for own in budgets)
        limit = budgets[0].sequences  # 0: the engine has no limit
        needed = [own.usable - own.cache + users * own.pool.request_bytes(question.seq) for own in budgets]
        return Fit(
            question=question,
            budgets=budgets,
            missing_format=missing_format(engine, parts[-1], device),
            converts=converts(engine, parts[-1], device),
            room=room,
            capacity=min(room, limit * layout.dp) if limit else room,
            longest=_longest(budgets, 1),
            longest_each=0 if 0 < limit < users else _longest(budgets, users),
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
    """Return a layout for `gpus` GPUs: tensor parallelism as far as the engine and the heads allow, then stages.

    Raises LayoutError if the model cannot be divided so.
    """
    problem: LayoutError | None = None
    for tp in range(gpus if "tp" in question.engine.spec.layouts else 1, 0, -1):
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
    factor: by which factor the setting changes. For a format, it is the factor of the bytes that it changes.
    engine_limit: whether the setting is a limit of the engine, which users do not notice.
    fit: the answer with the change.
    """

    option: str
    what: str
    factor: float
    engine_limit: bool
    fit: Fit


def changes(sizer: Sizer, fit: Fit) -> list[Change]:
    """Return the changes of one setting with which the model fits, the nearest one first.

    A change of a limit of the engine is nearer than all others, because it takes nothing from the users. Among the
    others, the nearest one has the smallest factor: half as many users are as near as half the bytes of the weights.
    """
    found = []
    for candidate in _candidates(sizer, fit):
        try:
            changed = sizer.fit(candidate.question)
        except LLMBenchError:
            continue
        if changed.fits:
            before, after = candidate.setting(fit), candidate.setting(changed)
            factor = max(before, after) / min(before, after)
            found.append(Change(candidate.option, candidate.what, factor, candidate.engine_limit, changed))
    return sorted(found, key=lambda change: (not change.engine_limit, change.factor))


WEIGHTS = ("fp16", "fp8-channel", "w4a16")
GGUF_WEIGHTS = ("gguf-q8-0", "gguf-q4-k-m", "gguf-q2-k")
"""Formats of weights that a suggestion names."""


class _Candidate(NamedTuple):
    """A question with one other setting. setting: the number in an answer that the change multiplies or divides."""

    option: str
    what: str
    question: Question
    setting: Callable[[Fit], float]
    engine_limit: bool = False


def _candidates(sizer: Sizer, fit: Fit) -> Iterator[_Candidate]:
    question = fit.question
    change = msgspec.structs.replace
    rule = question.engine.spec.rule
    if 0 < fit.longest_each < question.seq:
        block = question.engine.whole("block_tokens", 1)
        shorter = max(fit.longest_each - fit.longest_each % block, 1)
        yield _Candidate(
            f"--seq {shorter}",
            f"requests of at most {shorter:,} tokens",
            change(question, seq=shorter),
            lambda answer: answer.question.seq,
        )
    if 0 < fit.capacity < question.users:
        yield _Candidate(
            f"--users {fit.capacity}",
            f"{fit.capacity:,} users",
            change(question, users=fit.capacity),
            lambda answer: answer.question.users,
        )
    if question.kv is None:
        cache = "q8_0" if rule == "llamacpp" else "fp8"
        yield _Candidate(
            f"--kv-dtype {cache}",
            f"a cache in {cache}",
            change(question, kv=cache),
            lambda answer: answer.tightest.pool.request_bytes(question.seq) or 1,
        )
    limit = question.engine.whole("sequences", device=question.device)
    users = question.users_per_replica
    # A step needs room for the users. A smaller limit frees memory, and a larger one admits more users.
    if users > limit > 0 if "sequences" in question.engine.replaced else users < limit:
        engine = replaced(question.engine, "sequences", users)
        yield _Candidate(
            f"--engine {engine.text}",
            f"steps of at most {users:,} sequences",
            change(question, engine=engine),
            lambda answer: answer.question.engine.whole("sequences", device=question.device),
            engine_limit=True,
        )
    for name in GGUF_WEIGHTS if rule == "llamacpp" else WEIGHTS:
        yield _Candidate(
            f"--weights {name}",
            f"weights in {name}",
            change(question, weights=name),
            lambda answer: answer.budgets[0].shard.weights,
        )
    own = question.layout.num_gpus
    for gpus in COUNTS:
        if gpus > own and gpus % own == 0 and question.layout.dp == 1:
            try:
                layout = split(sizer, question, gpus)
            except (LayoutError, SpecError):
                continue
            larger = change(question, layout=layout)
            yield _Candidate(
                f"--gpus {gpus}", f"{gpus} GPUs ({layout})", larger, lambda answer: answer.question.layout.num_gpus
            )
            if sizer.fit(larger).fits:
                return
