"""Whole decoders: static caches and graphs choose the tokens of `generate`, and the figures are those of the op
table."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch

from llmbench.bench.experiments import generate
from llmbench.bench.experiments.experiment import Ask, run
from llmbench.bench.experiments.generate import Case, Checks, Shared, group_of, need_bytes, stages, verdicts
from llmbench.bench.experiments.generate.server import Server
from llmbench.bench.experiments.synthetic import heads, model_of
from llmbench.errors import CannotRunError, UnsupportedError
from llmbench.kernels import launching
from llmbench.measure.clock import CpuClock
from llmbench.measure.memory import peak_memory
from llmbench.measure.reference import Sizes, measure_references
from llmbench.model import build
from llmbench.model.generation import generate as generated
from llmbench.model.implementations import implementation
from llmbench.sizing.flops import count_flops
from llmbench.sizing.kvcache import kv_cache
from llmbench.sizing.params import count_parameters
from llmbench.sizing.work import work
from llmbench.sizing.workload import Workload
from llmbench.spec.ffn import Gated, MoE, Router
from llmbench.spec.mixer import LatentAttention, Mamba2, Mixer
from llmbench.spec.model import ModelSpec
from llmbench.spec.position import NoPositions, Rope
from tests.bench.recorded import RecordedCuda, RecordedGraph

CPU = torch.device("cpu")


def tiny(mixer: Mixer | None = None, ffn: Any = None) -> ModelSpec:
    positions = NoPositions() if isinstance(mixer, Mamba2) else Rope()
    parts: dict[str, Any] = {"mixer": mixer or heads(4, 2, 8), "ffn": ffn or Gated(intermediate_size=48)}
    return model_of("tiny", 32, **parts, positions=positions, layers=2, vocab=97)


LATENT = LatentAttention(num_attention_heads=4, kv_lora_rank=16, qk_nope_head_dim=8, qk_rope_head_dim=8, v_head_dim=8)
MIXERS = {"heads": heads(4, 2, 8), "window": heads(4, 2, 8, sliding_window=5), "latent": LATENT}


@pytest.fixture(autouse=True)
def _no_interpreter(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a CPU flash is torch's own kernel, as it is for users."""
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    monkeypatch.setattr(
        launching, "interpreted", lambda: False
    )  # another test may have loaded the kernels in the interpreter


@pytest.mark.parametrize("graph", [False, True], ids=["eager", "graph"])
@pytest.mark.parametrize("kind", MIXERS)
def test_a_server_chooses_the_tokens_of_generate(kind: str, graph: bool) -> None:
    model = build(tiny(MIXERS[kind]))
    prompts = torch.randint(97, (3, 7), generator=torch.Generator().manual_seed(1))
    expected = generated(model, prompts, max_new_tokens=9, temperature=0.0).tokens
    server = Server(model, prompts, 7 + 8, cuda=RecordedCuda())
    server.first()
    step = server.captured(server.next) if graph else server.next
    for _ in range(2):  # the cache is reused with its old contents
        server.first()
        tokens = [server.token.clone()]
        for _ in range(8):
            step()
            tokens.append(server.token.clone())
        assert torch.equal(torch.cat(tokens, dim=1), expected)


def test_a_call_that_reads_values_from_the_device_cannot_be_captured() -> None:
    """Experts that run one after another count their tokens on the host."""
    model = build(tiny(ffn=MoE(num_experts=4, num_experts_per_tok=2, intermediate_size=16, router=Router())))
    server = Server(model, torch.zeros(1, 3, dtype=torch.int64), 9, cuda=RecordedCuda())
    server.first()
    with pytest.raises(CannotRunError, match="cannot capture a step of tiny as a CUDA graph: called a synchronizing"):
        server.captured(server.next)


def test_states_of_recurrences_are_refused() -> None:
    model = build(tiny(Mamba2(num_heads=4, head_dim=8, state_size=8, n_groups=2, conv_kernel=4, chunk_size=4)))
    with pytest.raises(UnsupportedError, match="generate supports only models that cache keys and values"):
        Server(model, torch.zeros(1, 3, dtype=torch.int64), 5)


def case(**changes: Any) -> Case:
    defaults: dict[str, Any] = {"spec": tiny(), "dtype": "fp32", "device": CPU, "phase": "next token", "batch": 2}
    return Case(**{**defaults, "context": 11, **changes})


def test_a_wrong_step_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    good = verdicts(case(), "sdpa", graph=False)
    assert [verdict.passed for verdict in good] == [True]
    whole = implementation("sdpa").attend

    def shifted(q: Any, seen: Any, scores: Any) -> Any:
        return whole(q, seen, scores) * (1.0 if seen.slots is None else 1.001)  # wrong only on a cache

    monkeypatch.setattr(generate, "implementation", lambda name: implementation(name)._replace(attend=shifted))
    assert [verdict.passed for verdict in verdicts(case(), "sdpa", graph=False)] == [False]


def test_a_first_token_has_logits_of_one_position() -> None:
    """Compared with `count_flops`, which counts all positions."""
    chosen_case = case(phase="first token", context=20)
    spec = chosen_case.spec
    whole = count_flops(spec, Workload.prefill(20, 2)).total
    saved = 2 * 2 * 19 * spec.vocab_size * spec.hidden_size
    assert sum(part.times * work(part.ops, "forward").flops for part in stages(chosen_case)) == whole - saved


def test_an_answer_is_the_sum_of_its_steps() -> None:
    """The mean of the first and the last step times their number, compared with the sum of all steps."""
    answer = case(phase="answer", context=5, new_tokens=6)
    steps = [work(stages(case(context=context))[0].ops, "forward") for context in range(5, 10)]
    first = work(stages(case(phase="first token", context=5))[0].ops, "forward")
    for index in (0, 1):
        total = sum(part.times * work(part.ops, "forward")[index] for part in stages(answer))
        assert total == first[index] + sum(step[index] for step in steps)


def test_memory_is_weights_and_the_whole_cache_at_least() -> None:
    chosen_case = case(context=50)
    resident = (
        4 * count_parameters(chosen_case.spec).total
        + kv_cache(chosen_case.spec, 51, batch=2, kv_dtype="fp32").bytes_total
    )
    assert resident < need_bytes(chosen_case, "sdpa") < 1.5 * resident


@pytest.mark.parametrize("phase", ["next token", "answer"])
def test_memory_of_a_graph_is_that_of_its_step(phase: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A replay does not show it: a graph allocated its memory before."""
    monkeypatch.setattr(generate, "Server", partial(Server, cuda=RecordedCuda()))
    shared = Shared(case(phase=phase, new_tokens=8 if phase == "answer" else 1))
    eager, graph = (shared.call("sdpa", graph=graph) for graph in (False, True))
    graph()
    monkeypatch.setattr(RecordedGraph, "replay", lambda graph: None)
    assert peak_memory(graph, CPU) == peak_memory(eager, CPU)
    monkeypatch.setattr(shared.server, "_pass", lambda tokens: pytest.fail("not replayed"))
    if phase == "next token":
        graph()


def test_rows() -> None:
    ask = Ask(quick=True, device=CPU, dtype="fp32")
    clock = CpuClock()
    references = measure_references(clock, torch.float32, budget_s=0.01, sizes=Sizes(64, 2**16, 10))
    impls = ("sdpa", "flash", "fused")
    cases = [
        case(phase="first token"),
        case(),
        case(phase="answer", new_tokens=3),
    ]
    rows = list(
        run([group_of(one_case, impls, ask, Checks()) for one_case in cases], clock=clock, references=references)
    )
    assert [row.implementation for row in rows if row.status == "ok"] == ["sdpa", "flash"] * 3
    named = {str(row.case["phase"]): row.kernels for row in rows if row.implementation == "flash"}
    of_a_step = ("aten::_scaled_dot_product_flash_attention_for_cpu",)
    assert named == {"first token": of_a_step, "next token": of_a_step, "answer": ()}
    assert [row.status for row in rows if row.implementation == "fused"] == ["n/a"] * 3
    assert {row.case["phase"]: row.extra["tokens"] for row in rows} == {
        "first token": 22,
        "next token": 2,
        "answer": 6,
    }
    for row in (row for row in rows if row.status == "ok"):
        assert row.memory is not None
        assert row.need_bytes is not None
        measured = int(row.extra["input_bytes"] or 0) + row.memory.added_bytes
        assert row.need_bytes <= measured < 1.25 * row.need_bytes  # weights, cache and the widest op are the minimum
