"""Whether a model fits on some GPUs with an engine, for how many users, and how long a request can be."""

from __future__ import annotations

import msgspec

from llmbench.errors import LayoutError
from llmbench.sizing.lengths import refuse_beyond_context
from llmbench.sizing.serving.budget import Budget, budget, converts, ggml_head, ggml_layer, missing_format
from llmbench.sizing.serving.layouts import counts, layout_text, layouts
from llmbench.sizing.serving.shard import Shard, made_on_loading, shards
from llmbench.sizing.workload import Layout
from llmbench.spec.catalog import DeviceHead
from llmbench.spec.engine import SET, Constant, Engine, OnLoad
from llmbench.spec.model import ModelSpec

LONGEST = 2**27
"""The longest sequence that is tried, in tokens, if the model has no context length."""

LENGTH = 8192
"""The tokens of a request if the user names none and the model allows them."""


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
    published: whether the published files have the format of the weights, or the engine converts plain weights to it
        without being asked. on_load: how the engine converts the published weights if a flag asks for it, or None.
    missing_format: number format of the matrix products, if the engine cannot run them on the device.
    converts: whether a kernel of the engine converts the weights to the format of the activations, because the matrix
        units of the device do not compute their format.
    room: number of requests of `seq` tokens for which the cache has memory, on all replicas.
    capacity: number of them that run at the same time: `room`, or the engine's limit of sequences if that is smaller.
    most: longest request that the model allows: its context length, or LONGEST if it has none.
    filled: share of the memory that the engine may use, which weights, activations and the caches of the users take.
    """

    question: Question
    budgets: tuple[Budget, ...]
    published: bool
    on_load: OnLoad | None
    missing_format: str | None
    converts: bool
    room: int
    capacity: int
    most: int
    filled: float

    @property
    def longest(self) -> int:
        """The longest request that fits alone, in tokens, up to `most`. 0: none fits."""
        return _longest(self.budgets, 1, self.most)

    @property
    def longest_each(self) -> int:
        """The longest length of `users` requests, in tokens, up to `most`. 0: none fits."""
        users, limit = self.question.users_per_replica, self.budgets[0].sequences
        return 0 if 0 < limit < users else _longest(self.budgets, users, self.most)

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
        layout, rule = self.question.layout, self.question.engine.spec.rule
        doubts = self.tightest.engine.doubts(device, experts=shard.moe, weights=shard.format_name)
        if layout.dp > 1 and shard.moe and rule == "vllm":
            doubts.append(
                "the experts of a GPU get the tokens of all copies of the attention, and what they need for these "
                "tokens depends on the kernel and on the all-to-all backend"
            )
        elif layout.dp > 1 and shard.moe and rule != "ideal":
            doubts.append(
                "the experts of a GPU compute tokens of all copies of the attention, and what they allocate for these "
                "tokens in the largest step is not counted"
            )
        if rule == "llamacpp" and (layout.pp > 1 or ggml_layer(shard) > ggml_head(self.tightest.engine, shard)):
            doubts.append(
                "only the largest tensors of the compute buffer are counted; llama.cpp also stores the attention mask "
                "in it, and with several GPUs up to four copies of the inputs of a step"
            )
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
        self._shards: dict[tuple[str | None, ...], list[Shard]] = {}

    def shards(self, question: Question) -> list[Shard]:
        """Return the parts of the model on one GPU of each stage."""
        fp32 = question.engine.fp32_becomes(question.device)
        key = (question.engine.text, layout_text(question.layout), question.weights, question.kv, fp32)
        if key not in self._shards:
            self._shards[key] = shards(
                self.spec,
                question.layout,
                question.engine,
                weights=question.weights,
                kv=question.kv,
                draft=self.draft,
                fp32=fp32,
            )
        return self._shards[key]

    def _on_load(self, question: Question, parts: list[Shard]) -> OnLoad | None:
        """Return how the engine converts the published weights to a format when it loads them, if a flag asks for it.

        None: it does not, or the published weights do not fit into the memory before they are converted.
        """
        made = next((made for made in question.engine.on_load if made.format == parts[0].format), None)
        if made is None or made_on_loading(self.spec, question.weights) or not made_on_loading(self.spec, "bf16"):
            return None
        plain = self.shards(msgspec.structs.replace(question, weights=None)) if made.whole else []
        return made if all(part.weights < question.device.total_bytes for part in plain) else None

    def may_fit(self, question: Question) -> bool:
        """Return whether the weights alone leave memory free. It takes less time than a complete answer."""
        return max(part.weights for part in self.shards(question)) < question.device.total_bytes

    def fit(self, question: Question) -> Fit:
        """Return the answer.

        Raises LLMBenchError if the engine cannot run the model as the question says, and for a request that is longer
        than the context length.
        """
        refuse_beyond_context(self.spec, question.seq)
        layout, device = question.layout, question.device
        users = question.users_per_replica
        engine = _room_for(question.engine, users, device)
        parts = self.shards(question)
        budgets = tuple(
            budget(engine, device, shard, layout, seq=question.seq, utilization=question.utilization) for shard in parts
        )
        room = layout.dp * min(own.pool.requests(question.seq) for own in budgets)
        limit = budgets[0].sequences  # 0: the engine has no limit
        needed = [own.usable - own.cache + own.pool.bytes_for(users, question.seq) for own in budgets]
        return Fit(
            question=question,
            budgets=budgets,
            published=made_on_loading(self.spec, question.weights),
            on_load=self._on_load(question, parts),
            missing_format=missing_format(engine, parts[-1], device),
            converts=converts(engine, parts[-1], device),
            room=room,
            capacity=min(room, limit * layout.dp) if limit else room,
            most=self.spec.max_position_embeddings or LONGEST,
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


def _longest(budgets: tuple[Budget, ...], users: int, most: int) -> int:
    """Return the largest number of tokens, up to `most`, that each of `users` requests can have."""

    def fits(length: int) -> bool:
        return all(own.pool.requests(length) >= users for own in budgets)

    if fits(most):
        return most
    low, high = 0, most
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low


def best_fit(sizer: Sizer, question: Question, gpus: int) -> Fit:
    """Return the answer for `gpus` GPUs with the first layout of `layouts` that suffices.

    If none suffices, it is the first answer with the most users, or that with the least memory if there is room for
    no user. If the engine does not run on the device, it is that of the first layout that divides the model.

    Raises LayoutError if no layout divides the model.
    """
    problem: LayoutError | None = None
    best: Fit | None = None
    for layout in layouts(sizer.spec, question.engine, gpus):
        try:
            fit = sizer.fit(msgspec.structs.replace(question, layout=layout))
        except LayoutError as refusal:
            problem = problem or refusal
            continue
        if fit.fits or not fit.runs:
            return fit
        if best is None or fit.capacity > best.capacity or (not fit.capacity and fit.filled < best.filled):
            best = fit
    if best is None:
        assert problem is not None
        raise problem
    return best


def smallest_count(sizer: Sizer, question: Question) -> Fit | None:
    """Return the answer for the smallest number of GPUs that suffices, or None if no number of `counts` does.

    If the engine does not run on the device, return the answer for one GPU.
    """
    for gpus in counts(question.engine, question.device):
        for layout in layouts(sizer.spec, question.engine, gpus):
            own = msgspec.structs.replace(question, layout=layout)
            try:
                if gpus > 1 and not sizer.may_fit(own):
                    continue
                fit = sizer.fit(own)
            except LayoutError:
                continue
            if fit.fits or not fit.runs:
                return fit
    return None
