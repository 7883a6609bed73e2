"""How fast does a decoder answer: the first token, each further one, a whole answer; eager and as a CUDA graph?

The model is real, its weights random, its cache static (`server` has both). B batch, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from itertools import product
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from llmbench.bench.correctness import check_factor
from llmbench.bench.experiments.experiment import Ask, Chart, Experiment, Group
from llmbench.bench.experiments.generate.server import Server
from llmbench.bench.experiments.synthetic import heads, model_of
from llmbench.bench.pieces.blocks import decoder_of
from llmbench.bench.pieces.piece import Setting, computed
from llmbench.bench.pieces.reduce import layer_of_each_kind
from llmbench.kernels.proof.accuracy import Verdict, check_against
from llmbench.measure.check_and_time import Candidate
from llmbench.measure.clock import Call
from llmbench.measure.memory import GraphedCall
from llmbench.measure.reference import Bandwidth, ReferenceMeasurements
from llmbench.measure.results import Scalar
from llmbench.model.create import build, parameter_bytes
from llmbench.model.formats import DTYPES
from llmbench.model.implementations import implementation
from llmbench.sizing.dtypes import bytes_of
from llmbench.sizing.kvcache import kv_cache
from llmbench.sizing.lower import lower
from llmbench.sizing.memory import widest_bytes
from llmbench.sizing.op import Op
from llmbench.sizing.params import count_parameters
from llmbench.sizing.work import least_s, work
from llmbench.sizing.workload import Workload
from llmbench.spec.catalog import load_bundled
from llmbench.spec.ffn import Gated
from llmbench.spec.model import ModelSpec

__all__ = ["EXPERIMENT", "Case", "Checks", "Phase", "Shared", "group_of", "parts", "rival", "verdicts"]

Phase = Literal["first token", "next token", "answer"]


@dataclass(frozen=True, kw_only=True)
class Case:
    """What is asked of a model: prompts of `context` tokens read (first token, answer), or one more token chosen after
    `context` that are in the cache. `new_tokens` of an answer."""

    spec: ModelSpec
    dtype: Any
    device: torch.device
    phase: Phase
    batch: int
    context: int
    new_tokens: int = 1

    @property
    def capacity(self) -> int:
        """Tokens that the cache must have room for: the one chosen last is never put in, that of a next token is."""
        return self.context + (1 if self.phase == "next token" else self.new_tokens - 1)

    @property
    def tokens(self) -> int:
        """What its rate counts: tokens read for a first token, else tokens made."""
        return self.batch * (self.context if self.phase == "first token" else self.new_tokens)

    @property
    def bandwidth(self) -> Bandwidth:
        """What its bytes are held against: steps, of which an answer has many, hardly write."""
        return "copy" if self.phase == "first token" else "read"


class Part(NamedTuple):
    """Ops that are done `times` times, one after the other."""

    ops: list[Op]
    times: float


def parts(case: Case, impl: str | None = None) -> list[Part]:
    """The ops of a case; as `impl` computes them, or with None those that no way to compute does without.

    An answer is a first token and steps whose cache grows by a token each: all are taken as their mean, which is half
    the first and half the last, for an op's FLOPs and bytes grow by the same with each token.
    """
    how: dict[str, Any] = dict.fromkeys(("weight_dtype", "activation_dtype", "kv_dtype"), case.dtype)

    def told(phase: Literal["prefill", "decode"]) -> dict[str, Any]:
        return how if impl is None else how | computed(impl, phase)

    def step(context: int) -> list[Op]:
        return lower(case.spec, Workload.decode(context, case.batch, **told("decode")))

    if case.phase == "next token":
        return [Part(step(case.context), 1.0)]
    whole = lower(case.spec, Workload.prefill(case.context, case.batch, **told("prefill")))
    last = lower(case.spec, Workload.prefill(1, case.batch, **told("prefill")))
    after = 1 + max(index for index, op in enumerate(whole) if op.layer)  # only the last position has logits
    found = [Part(whole[:after] + last[after:], 1.0)]
    if case.new_tokens > 1:
        half = (case.new_tokens - 1) / 2
        found += [Part(step(context), half) for context in (case.context, case.capacity - 1)]
    return found


def need_bytes(case: Case, impl: str) -> int:
    """Weights, the cache with all its room, and the widest op."""
    found = parts(case, impl)
    held = count_parameters(case.spec)
    weights = bytes_of(held.total + held.buffers, case.dtype)
    room = kv_cache(case.spec, case.capacity, batch=case.batch, kv_dtype=case.dtype)
    return weights + room.bytes_total + max(widest_bytes(part.ops) for part in found)


class Shared:
    """What the rivals of a case have in common, made when the first of them needs it."""

    def __init__(self, case: Case) -> None:
        self.case = case
        self.figures: dict[str, Scalar] = {"tokens": case.tokens, "bandwidth": case.bandwidth}

    @cached_property
    def server(self) -> Server:
        """The model with its cache; full of random keys and values where only a step is timed."""
        case = self.case
        model = build(case.spec, impl="standard", device=case.device, dtype=DTYPES[case.dtype])
        length = 1 if case.phase == "next token" else case.context
        prompts = torch.randint(case.spec.vocab_size, (case.batch, length), device=case.device)
        server = Server(model, prompts, case.capacity)
        if case.phase == "next token":
            server.fill(case.context)
        self.figures["input_bytes"] = parameter_bytes(model) + server.nbytes
        return server

    def call(self, impl: str, *, graph: bool) -> Call:
        """What is timed."""
        server, case, how = self.server, self.case, implementation(impl)
        if case.phase == "first token":
            return server.by(how, server.first)
        if case.phase == "next token":

            def step() -> None:
                server.start(case.context)  # again and again after as many tokens
                server.next()

            eager = server.by(how, step)
            return GraphedCall(server.captured(eager), eager) if graph else eager

        def answered(following: Call) -> Call:
            return server.by(how, partial(server.answer, case.new_tokens, following))

        eager = answered(server.next)
        server.by(how, server.first)()
        return GraphedCall(answered(server.captured(server.by(how, server.next))), eager) if graph else eager


def group_of(case: Case, impls: Sequence[str], ask: Ask, checks: Checks) -> Group:
    """The implementations at a case, each step of theirs eager and, on a GPU, as a graph too."""
    graphs = (False, True) if case.device.type == "cuda" and case.phase != "first token" else (False,)
    rivals = {impl + " graph" * graph: (impl, graph) for impl in impls for graph in graphs}
    about: dict[str, Scalar] = {
        "model": case.spec.name,
        "dtype": case.dtype,
        "phase": case.phase,
        "batch": case.batch,
        "context": case.context,
    }
    if case.phase == "answer":
        about["new_tokens"] = case.new_tokens

    def made(references: ReferenceMeasurements) -> list[Candidate]:
        shared = Shared(case)
        return [rival(name, *how, shared, references, checks) for name, how in rivals.items()]

    answers = case.phase == "answer"
    # One answer takes long enough to be trusted. Its kernels are those of its steps, and too many to be named again.
    pace = replace(ask.pace, min_samples=3) if answers else ask.pace
    return Group(
        experiment="generate",
        case=about,
        names=list(rivals),
        rivals=made,
        pace=pace,
        graphs=False,
        attention=not answers,
        energy=not ask.quick,
    )


def rival(
    name: str, impl: str, graph: bool, shared: Shared, references: ReferenceMeasurements, checks: Checks
) -> Candidate:
    """An implementation at a case."""
    case = shared.case
    must, does = parts(case), parts(case, impl)
    flops, moved = (sum(part.times * work(part.ops, "forward")[index] for part in must) for index in (0, 1))
    limits = references.limits(case.bandwidth)
    return Candidate(
        name=name,
        prepare=partial(shared.call, impl, graph=graph),
        check=partial(checks, case, impl, graph),
        need_bytes=need_bytes(case, impl),
        work_flops=round(flops),
        work_bytes=round(moved),
        predicted_s=sum(part.times * least_s(part.ops, "forward", limits.least_s) for part in does),
        extra=shared.figures,
    )


class Checks:
    """Verdicts on ways to compute a model, each found once."""

    def __init__(self) -> None:
        self.known: dict[tuple[str, str, bool], list[Verdict]] = {}

    def __call__(self, case: Case, impl: str, graph: bool) -> list[Verdict]:
        """Of that model computed that way."""
        key = case.spec.name, impl, graph
        if key not in self.known:
            self.known[key] = verdicts(case, impl, graph=graph)
        return self.known[key]


def verdicts(case: Case, impl: str, *, graph: bool, prompt: int = 9, steps: int = 6) -> list[Verdict]:
    """Logits of a layer of each kind, token by token on its cache, held against one pass of plain torch over all
    tokens at once."""
    spec = layer_of_each_kind(case.spec)
    setting = Setting(spec=spec, batch=2, seq_len=prompt + steps, dtype=case.dtype, device=case.device)
    _, version = decoder_of(setting)

    def stepped(tokens: Tensor, like: Tensor) -> Tensor:
        server = Server(version(like.dtype), tokens[:, :prompt], prompt + steps)
        how = implementation(impl)
        server.by(how, server.first)()
        found = [server.logits.clone()]
        step = server.by(how, server.next)
        if graph:
            step = server.captured(step)
            server.start(prompt)
        for index in range(prompt, prompt + steps):
            server.token.copy_(tokens[:, index : index + 1])
            step()
            found.append(server.logits.clone())
        return torch.cat(found, dim=1)

    def whole(tokens: Tensor, like: Tensor) -> Tensor:
        model = version(like.dtype)
        model.implementation = implementation("standard")
        with torch.no_grad():
            return model(tokens)[:, prompt - 1 :]

    inputs = {"tokens": setting.tokens(spec.vocab_size, 2, prompt + steps), "like": setting.normal()}
    return check_against(stepped, whole, inputs, factor=check_factor(impl, case.device))


def groups(ask: Ask) -> list[Group]:
    """Batches and contexts of a 7B model and one with latent attention and experts; on a CPU of a small one."""
    checks = Checks()
    return [group_of(case, plan.impls, ask, checks) for plan in plans(ask) for case in plan.cases(ask)]


class Plan(NamedTuple):
    """A model, and the (batch, context) at which it reads, steps and answers."""

    spec: ModelSpec
    impls: tuple[str, ...]
    reads: tuple[tuple[int, int], ...]
    steps: tuple[tuple[int, int], ...]
    answers: tuple[tuple[int, int], ...]
    new_tokens: int

    def cases(self, ask: Ask) -> list[Case]:
        """All of them."""
        phases: tuple[tuple[Phase, tuple[tuple[int, int], ...], int], ...] = (
            ("first token", self.reads, 1),
            ("next token", self.steps, 1),
            ("answer", self.answers, self.new_tokens),
        )
        return [
            Case(
                spec=self.spec,
                dtype=ask.dtype,
                device=ask.device,
                phase=phase,
                batch=batch,
                context=context,
                new_tokens=new_tokens,
            )
            for phase, shapes, new_tokens in phases
            for batch, context in shapes
        ]


def plans(ask: Ask) -> list[Plan]:
    """The models and shapes of a preset. A CPU has no kernels of ours, and no graphs."""
    if not ask.on_gpu:
        impls = "standard", "sdpa", "flash"
        if ask.quick:
            spec = model_of("tiny", 128, mixer=heads(4, 2, 32), ffn=Gated(intermediate_size=384), layers=4, vocab=1024)
            return [Plan(spec, impls, ((1, 64),), ((1, 64), (4, 256)), ((1, 16),), 8)]
        spec = load_bundled("smollm2-135m")
        return [Plan(spec, impls, ((1, 128), (1, 512)), tuple(product((1, 8), (128, 1024))), ((1, 128),), 32)]
    impls, names = ("sdpa", "flash", "fused"), ("llama2-7b", "deepseek-v2-lite")
    if ask.quick:
        return [Plan(load_bundled("llama3.2-1b"), impls, ((1, 1024),), ((1, 1024),), ((1, 1024),), 32)]
    return [
        Plan(
            load_bundled(name),
            impls,
            ((1, 512), (1, 4096), (8, 2048)),
            tuple(product((1, 8, 32), (512, 4096))),
            ((1, 512),),
            64,
        )
        for name in names
    ]


EXPERIMENT = Experiment(
    name="generate",
    question="how fast does a decoder answer: the first token, each further one, a whole answer?",
    groups=groups,
    baseline="sdpa",
    chart=Chart("context", "tokens of context"),
    notes=(
        "first token: from a prompt in memory to the choice of the token after it (time to first token)",
        "next token: one more token for every sequence, after `context` tokens in the cache (time per output token)",
        "answer: a prompt read and new_tokens chosen, one after the other",
        "tokens/s: of all sequences together; those read for a first token, else those made",
        "graph: the step as one CUDA graph; the cache is static for all, its bookkeeping on the host outside",
    ),
)
