"""How fast does a decoder generate the first token, each further token and a whole answer, eager and as a CUDA graph?

The model is a whole decoder with random weights and a static cache (see `server`). B batch, V vocabulary.
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
from llmbench.bench.pieces.blocks import decoder_of, decoder_only
from llmbench.bench.pieces.piece import Setting
from llmbench.bench.pieces.reduce import layer_of_each_kind
from llmbench.kernels.proof.accuracy import Verdict, check_against
from llmbench.measure.check_and_time import Candidate
from llmbench.measure.clock import Call
from llmbench.measure.memory import GraphedCall
from llmbench.measure.reference import Bandwidth, ReferenceMeasurements
from llmbench.measure.results import Scalar
from llmbench.model.create import build, parameter_bytes
from llmbench.model.formats import DTYPES
from llmbench.model.implementations import described, implementation
from llmbench.sizing.dtypes import bytes_of
from llmbench.sizing.kvcache import kv_cache
from llmbench.sizing.lengths import refuse_beyond_positions
from llmbench.sizing.lower import lower
from llmbench.sizing.memory import widest_bytes
from llmbench.sizing.op import Op
from llmbench.sizing.params import count_parameters
from llmbench.sizing.work import least_s, work
from llmbench.sizing.workload import Workload
from llmbench.spec.catalog import load_bundled
from llmbench.spec.ffn import Gated
from llmbench.spec.model import ModelSpec

__all__ = ["EXPERIMENT", "Case", "Checks", "Phase", "Shared", "Stage", "candidate", "group_of", "stages", "verdicts"]

Phase = Literal["first token", "next token", "answer"]


@dataclass(frozen=True, kw_only=True)
class Case:
    """One timed request to a model. The request has one of three phases.

    "first token": read prompts of `context` tokens and choose a token. "next token": choose one more token after
    `context` tokens in the cache. "answer": read prompts of `context` tokens and choose `new_tokens` tokens.
    """

    spec: ModelSpec
    dtype: Any
    device: torch.device
    phase: Phase
    batch: int
    context: int
    new_tokens: int = 1

    @property
    def capacity(self) -> int:
        """The number of tokens per sequence that the cache must store. The last token of an answer is never appended to
        the cache. In the phase "next token", the cache also stores the token that the step reads."""
        return self.context + (1 if self.phase == "next token" else self.new_tokens - 1)

    @property
    def tokens(self) -> int:
        """The number of tokens from which tokens/s is computed. In the phase "first token", the tokens that are read
        count. In the other phases, the tokens that are generated count."""
        return self.batch * (self.context if self.phase == "first token" else self.new_tokens)

    @property
    def bandwidth(self) -> Bandwidth:
        """The reference measurement with which the memory traffic is compared. A decoding step is compared with `read`,
        because it writes almost nothing. An answer is compared with `read` too, because it consists mostly of steps."""
        return "copy" if self.phase == "first token" else "read"


class Stage(NamedTuple):
    """A list of ops, and the number of times that the whole list runs."""

    ops: list[Op]
    times: float


def stages(case: Case, impl: str | None = None) -> list[Stage]:
    """Return the ops of a case that the implementation `impl` runs. If `impl` is None, return the ops that every
    implementation must compute.

    An answer consists of a first token and of decoding steps. The cache grows by one token per step, and the FLOPs and
    bytes of an op grow linearly with the tokens in the cache. Therefore the mean step costs as much as the mean of the
    first and the last step, and each of these two is counted for half of the steps.
    """
    formats: dict[str, Any] = dict.fromkeys(("weight_dtype", "activation_dtype", "kv_dtype"), case.dtype)

    def options(phase: Literal["prefill", "decode"]) -> dict[str, Any]:
        return formats if impl is None else formats | described(impl).traits.computed(phase)

    def step(context: int) -> list[Op]:
        return lower(case.spec, Workload.decode(context, case.batch, **options("decode")))

    if case.phase == "next token":
        return [Stage(step(case.context), 1.0)]
    whole = lower(case.spec, Workload.prefill(case.context, case.batch, **options("prefill")))
    last = lower(case.spec, Workload.prefill(1, case.batch, **options("prefill")))
    # The logits are computed for the last position only.
    after = 1 + max(index for index, op in enumerate(whole) if op.layer)
    parts = [Stage(whole[:after] + last[after:], 1.0)]
    if case.new_tokens > 1:
        half = (case.new_tokens - 1) / 2
        parts += [Stage(step(context), half) for context in (case.context, case.capacity - 1)]
    return parts


def need_bytes(case: Case, impl: str) -> int:
    """Return the sum of three sizes in bytes: the weights, the whole cache, and the activations of the op that reads
    and writes the most."""
    parameters = count_parameters(case.spec)
    weights = bytes_of(parameters.total + parameters.buffers, case.dtype)
    cache = kv_cache(case.spec, case.capacity, batch=case.batch, kv_dtype=case.dtype)
    return weights + cache.bytes_total + max(widest_bytes(stage.ops) for stage in stages(case, impl))


class Shared:
    """The server and the figures that all candidates of a case share. The server is built when the first candidate
    needs it."""

    def __init__(self, case: Case) -> None:
        self.case = case
        self.extra: dict[str, Scalar] = {"tokens": case.tokens, "bandwidth": case.bandwidth}

    @cached_property
    def server(self) -> Server:
        """The model with its cache. If the request is only a decoding step, the cache starts with random keys and
        values."""
        case = self.case
        model = build(case.spec, impl="standard", device=case.device, dtype=DTYPES[case.dtype])
        length = 1 if case.phase == "next token" else case.context
        prompts = torch.randint(case.spec.vocab_size, (case.batch, length), device=case.device)
        server = Server(model, prompts, case.capacity)
        if case.phase == "next token":
            server.fill(case.context)
        self.extra["input_bytes"] = parameter_bytes(model) + server.nbytes
        return server

    def call(self, impl: str, *, graph: bool) -> Call:
        """Return the call that is timed. With `graph`, each decoding step is captured as a CUDA graph."""
        server, case, chosen = self.server, self.case, implementation(impl)
        if case.phase == "first token":
            return server.bound(chosen, server.first)
        if case.phase == "next token":

            def step() -> None:
                server.start(case.context)  # every call starts with the same number of cached tokens
                server.next()

            eager = server.bound(chosen, step)
            return GraphedCall(server.captured(eager), eager) if graph else eager

        def answer(following: Call) -> Call:
            return server.bound(chosen, partial(server.answer, case.new_tokens, following))

        eager = answer(server.next)
        server.bound(chosen, server.first)()
        return GraphedCall(answer(server.captured(server.bound(chosen, server.next))), eager) if graph else eager


def group_of(case: Case, impls: Sequence[str], ask: Ask, checks: Checks) -> Group:
    """Return the group that compares the implementations `impls` in one case. On a GPU, each decoding step runs eager
    and as a CUDA graph."""
    graphs = (False, True) if case.device.type == "cuda" and case.phase != "first token" else (False,)
    variants = {impl + " graph" * graph: (impl, graph) for impl in impls for graph in graphs}
    fields: dict[str, Scalar] = {
        **(ask.shape.case or {"model": case.spec.name}),
        "dtype": case.dtype,
        "phase": case.phase,
        "batch": case.batch,
        "context": case.context,
    }
    if case.phase == "answer":
        fields["new_tokens"] = case.new_tokens

    def candidates(references: ReferenceMeasurements) -> list[Candidate]:
        shared = Shared(case)
        return [candidate(name, impl, graph, shared, references, checks) for name, (impl, graph) in variants.items()]

    answers = case.phase == "answer"
    # Three samples of an answer are enough, because an answer takes long. The rows of an answer do not name its
    # attention kernels, because the rows of single steps already name them.
    pace = replace(ask.pace, min_samples=3) if answers else ask.pace
    return Group(
        case=fields,
        names=list(variants),
        candidates=candidates,
        pace=pace,
        graphs=False,
        attention=not answers,
        energy=not ask.quick,
    )


def candidate(
    name: str, impl: str, graph: bool, shared: Shared, references: ReferenceMeasurements, checks: Checks
) -> Candidate:
    """Return the candidate `name`, which computes a case with the implementation `impl`."""
    case = shared.case
    must, computed = stages(case), stages(case, impl)
    flops, moved = (sum(stage.times * work(stage.ops, "forward")[index] for stage in must) for index in (0, 1))
    limits = references.limits(case.bandwidth)
    return Candidate(
        name=name,
        prepare=partial(shared.call, impl, graph=graph),
        check=partial(checks, case, impl, graph),
        need_bytes=need_bytes(case, impl),
        work_flops=round(flops),
        work_bytes=round(moved),
        predicted_s=sum(stage.times * least_s(stage.ops, "forward", limits.least_s) for stage in computed),
        extra=shared.extra,
    )


class Checks:
    """The verdicts on each implementation of each model. Each check runs only once."""

    def __init__(self) -> None:
        self.known: dict[tuple[str, str, bool], list[Verdict]] = {}

    def __call__(self, case: Case, impl: str, graph: bool) -> list[Verdict]:
        """Return the verdicts on the implementation `impl` of the case's model."""
        key = case.spec.name, impl, graph
        if key not in self.known:
            self.known[key] = verdicts(case, impl, graph=graph)
        return self.known[key]


def verdicts(case: Case, impl: str, *, graph: bool, prompt: int = 9, steps: int = 6) -> list[Verdict]:
    """Check an implementation on a reduced model with one layer of each kind.

    The implementation decodes token by token with a KV cache. Its logits are compared with the logits of plain torch,
    which reads all tokens in one pass.
    """
    spec = layer_of_each_kind(case.spec)
    setting = Setting(spec=spec, batch=2, seq_len=prompt + steps, dtype=case.dtype, device=case.device)
    _, version = decoder_of(setting)

    def stepped(tokens: Tensor, like: Tensor) -> Tensor:
        server = Server(version(like.dtype), tokens[:, :prompt], prompt + steps)
        chosen = implementation(impl)
        server.bound(chosen, server.first)()
        logits = [server.logits.clone()]
        step = server.bound(chosen, server.next)
        if graph:
            step = server.captured(step)
            server.start(prompt)
        for index in range(prompt, prompt + steps):
            server.token.copy_(tokens[:, index : index + 1])
            step()
            logits.append(server.logits.clone())
        return torch.cat(logits, dim=1)

    def whole(tokens: Tensor, like: Tensor) -> Tensor:
        model = version(like.dtype)
        model.implementation = implementation("standard")
        with torch.no_grad():
            return model(tokens)[:, prompt - 1 :]

    inputs = {"tokens": setting.tokens(spec.vocab_size, 2, prompt + steps), "like": setting.normal()}
    return check_against(stepped, whole, inputs, factor=check_factor(impl, case.device))


def groups(ask: Ask) -> list[Group]:
    """Return the groups of all plans. On a GPU, the full preset has a 7B model and a model with MLA and a mixture of
    experts. On a CPU, the presets have a small model."""
    checks = Checks()
    return [group_of(case, plan.impls, ask, checks) for plan in plans(ask) for case in plan.cases(ask)]


class Plan(NamedTuple):
    """A model with its implementations and shapes. The shapes are pairs (batch, context).

    `reads`: the shapes of the phase "first token". `steps`: the shapes of the phase "next token". `answers`: the shapes
    of the phase "answer". `new_tokens`: the number of generated tokens per answer.
    """

    spec: ModelSpec
    impls: tuple[str, ...]
    reads: tuple[tuple[int, int], ...]
    steps: tuple[tuple[int, int], ...]
    answers: tuple[tuple[int, int], ...]
    new_tokens: int

    def cases(self, ask: Ask) -> list[Case]:
        """Return all cases of the plan."""
        shapes_of: tuple[tuple[Phase, tuple[tuple[int, int], ...], int], ...] = (
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
            for phase, shapes, new_tokens in shapes_of
            for batch, context in shapes
        ]


def plans(ask: Ask) -> list[Plan]:
    """Return the models and shapes of a preset. The model and the shapes that the user chose replace them."""
    preset = _preset(ask)
    if ask.shape.model is not None:
        preset = [preset[0]._replace(spec=decoder_only(ask.shape.model))]
    chosen = [
        plan._replace(reads=ask.pairs(plan.reads), steps=ask.pairs(plan.steps), answers=ask.pairs(plan.answers))
        for plan in preset
    ]
    for plan in chosen:
        for case in plan.cases(ask):
            refuse_beyond_positions(plan.spec, case.context + case.new_tokens)
    return chosen


def _preset(ask: Ask) -> list[Plan]:
    """Return the models and shapes of a preset. A CPU runs neither the Triton kernels nor CUDA graphs."""
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
    question="how fast does a decoder generate: the first token, each further token, a whole answer?",
    groups=groups,
    baseline="sdpa",
    chart=Chart("context", "tokens of context"),
    notes=(
        "first token: the time from a prompt in memory to the choice of the first new token (time to first token)",
        "next token: the time to generate one more token for every sequence, after `context` tokens in the cache (time"
        " per output token)",
        "answer: the time to read a prompt and to choose `new_tokens` tokens, one after the other",
        "tokens/s: the tokens of all sequences together per second. `first token` counts the tokens that the model"
        " reads. `next token` and `answer` count the tokens that the model generates",
        "graph: each step runs as one CUDA graph. Every cache has a static size. The host updates its record of the"
        " cache (lengths, free slots) outside the graph",
    ),
)
