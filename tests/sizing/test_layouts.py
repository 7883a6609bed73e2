"""Expert grids and uneven pipeline stages: shards add up to the whole model, and notations mean what Megatron says."""

from __future__ import annotations

import shlex

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmbench.errors import LayoutError, SpecError
from llmbench.sizing.lower import lower
from llmbench.sizing.params import count_parameters
from llmbench.sizing.recipe import Recipe
from llmbench.sizing.stage_plan import Part, chunk_parts
from llmbench.sizing.stages import chunks_in_flight
from llmbench.sizing.training import training_memory, training_run
from llmbench.sizing.workload import Layout, Workload
from llmbench.spec.catalog import load_bundled
from llmbench.spec.ffn import MoE
from llmbench.spec.model import Layer, ModelSpec

MIXTRAL = load_bundled("mixtral-8x7b")
DEEPSEEK = load_bundled("deepseek-v3")
LLAMA = load_bundled("llama2-7b")

powers = st.sampled_from([1, 2, 4, 8])


@settings(max_examples=60, deadline=None)
@given(tp=powers, dp=powers, cp=st.sampled_from([1, 2]), ep=powers, etp=powers)
def test_expert_grids_add_up_to_the_whole_model(tp: int, dp: int, cp: int, ep: int, etp: int) -> None:
    """The GPUs of a stage together have expert_dp copies of each expert, and every (token, expert) pair is computed."""
    if (tp * cp * dp) % (ep * etp):
        with pytest.raises(LayoutError, match="divisible"):
            Layout(tp=tp, cp=cp, dp=dp, ep=ep, etp=etp)
        return
    layout = Layout(tp=tp, sp=tp > 1, cp=cp, dp=dp, ep=ep, etp=etp)
    work = Workload.train(4096)
    whole = {op.name: op for op in lower(MIXTRAL, work) if op.component == "experts" and op.parameters}
    for op in lower(MIXTRAL, work, layout):
        if op.name in whole:
            assert op.parameters * layout.num_gpus == whole[op.name].parameters * layout.expert_dp
            # each of the dp replicas has a micro-batch of its own
            assert op.forward_flops * layout.num_gpus == whole[op.name].forward_flops * dp


def test_the_states_of_experts_are_split_over_their_own_copies() -> None:
    experts = count_parameters(MIXTRAL).components["experts"]
    rest = count_parameters(MIXTRAL).total - experts
    for text, dense, expert in (
        ("tp=2,sp,dp=8,ep=8,etp=1,zero=1", 2 * 8, 8 * 2),
        ("tp=2,sp,dp=8,ep=8,etp=1,zero=1,instances=2", 2 * 4, 8 * 1),
        ("tp=2,sp,dp=8,ep=2,zero=1,instances=4", 2 * 2, 4 * 1),
    ):
        full = training_memory(MIXTRAL, 128, layout=Layout.parse(text), precision="mixed-fp32-grads").full_bytes
        assert full["optimizer"] == pytest.approx(12 * (rest / dense + experts / expert), rel=1e-3), text


def test_ep_without_etp_splits_each_expert_over_the_tensor_parallel_group() -> None:
    """Megatron's default: the matrices of an expert are split over as many GPUs as those of attention."""
    default, named = (lower(MIXTRAL, Workload.train(64), Layout.parse(f"tp=4,sp,dp=2,ep=2{x}")) for x in ("", ",etp=4"))
    assert default == named


def test_layout_texts_come_back() -> None:
    for text in (
        "tp=4,sp,pp=2,first=3,dp=4,ep=8,etp=1,zero=1,instances=2",
        "pp=2,stages=Et*3|t*4mL",
        "pp=4,count_loss",
    ):
        assert str(Layout.parse(text)) == text


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("Et*3|(tt|)*6tL", [3, 2, 2, 2, 2, 2, 2, 1]),
        ("E|t*2|(t|)*2L", [0, 2, 1, 1, 0]),
        ("E(t|)*2|((tt|)*2t)L", [1, 1, 0, 2, 2, 1]),
    ],
)
def test_notations_are_written_out(text: str, parts: list[int]) -> None:
    layout = Layout(pp=len(parts), stages=text)
    got = chunk_parts(layout, sum(parts))
    assert [part.layers for part in got] == parts
    assert got[0].embedding
    assert got[-1].head
    assert sum(part.embedding + part.head for part in got) == 2


def test_megatrons_uneven_stages() -> None:
    """decoder-first/last-pipeline-num-layers and account-for-embedding/loss-in-pipeline-split of Megatron."""
    cases = {
        "pp=4,first=2": (14, [2, 4, 4, 4]),
        "pp=4,first=3,last=3": (14, [3, 4, 4, 3]),
        "pp=2,interleave=2,first=4": (12, [2, 4, 2, 4]),
        "pp=4,count_embedding,count_loss": (14, [3, 4, 4, 3]),
        "pp=2,interleave=2,count_loss": (15, [4, 4, 4, 3]),
    }
    for text, (layers, counts) in cases.items():
        assert [part.layers for part in chunk_parts(Layout.parse(text), layers)] == counts, text


def test_stages_add_up_to_the_whole_model() -> None:
    whole = count_parameters(DEEPSEEK).total
    texts = ("pp=4", "pp=4,first=13", "pp=2,interleave=2", "pp=2,interleave=2,stages=Et*10|t*11|t*20|t*20L")
    for text in texts:
        stages = training_run(DEEPSEEK, 64, layout=Layout.parse(text)).stages
        assert sum(op.parameters for stage in stages for op in stage.ops) == whole, text
    # multi-token prediction: its modules, and a copy of the embedding on the last stage
    run = training_run(DEEPSEEK, 64, layout=Layout.parse("pp=2,stages=Et*30|t*31mL"), recipe=Recipe(mtp=True))
    modules = count_parameters(DEEPSEEK).next_token_prediction
    table = DEEPSEEK.vocab_size * DEEPSEEK.hidden_size
    assert sum(op.parameters for stage in run.stages for op in stage.ops) == whole + modules + table
    one = training_run(DEEPSEEK, 64, recipe=Recipe(mtp=True))
    assert sum(op.parameters for op in one.stages[0].ops) == whole + modules


def test_a_module_for_multi_token_prediction_has_a_loss_of_its_own() -> None:
    run = training_run(DEEPSEEK, 64, recipe=Recipe(mtp=True))
    logits = 64 * DEEPSEEK.vocab_size
    assert sum(op.saved_bytes for op in run.stages[0].ops if op.kind == "loss") == 2 * 4 * logits


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("dp=4,etp=8", "divisible by ep × etp = 8"),
        ("dp=8,instances=3,zero=1", "copies"),
        ("dp=8,instances=2", "zero"),
        ("first=3", "pp of at least 2"),
        ("pp=2,first=3,stages=Et|tL", "cannot be used with stages"),
        ("pp=2,first=3,count_loss", "evenly"),
        ("pp=4,first=3", "cannot be divided evenly"),
        ("pp=2,first=3,last=4", "32 layers, not 7"),
        ("pp=2,interleave=2,first=3", "not divisible by interleave"),
        ("pp=2,stages=Et*32L", "has 1 chunks"),
        ("pp=2,stages=Et*16|t*15L", "has 31 × `t`"),
        ("pp=2,stages=Et*16|t*16", "order"),
        ("pp=2,stages=Et*16|t*16mL", "1 × `m`"),
        ("pp=2,stages=Et*16|x", "unknown letter `x`"),
        ("pp=2,stages=Et*16|t*16)L", "cannot read"),
        ("pp=2,stages=E(((t*9999)*9999)*9999)|L", "repetitions"),
    ],
)
def test_layouts_that_do_not_fit_are_refused(text: str, message: str) -> None:
    with pytest.raises(LayoutError, match=message.replace("|", r"\|").replace("×", "×")):
        training_memory(LLAMA, 128, layout=Layout.parse(text))


@pytest.mark.parametrize(
    ("text", "layers", "mtp"),
    [
        ("stages=Et*8|x", 32, 0),
        ("tp=8,pp=4,stages=tL", 61, 1),
        ("pp=16,stages=Et*32L", 61, 0),
        ("pp=2,interleave=4,stages=E|L", 32, 0),
        ("pp=8,interleave=4,stages=E|L", 3, 0),
        ("pp=2,stages=Et*2|t*9L", 1, 0),
    ],
)
def test_the_hint_is_a_layout_of_this_model(text: str, layers: int, mtp: int) -> None:
    with pytest.raises(LayoutError) as refused:
        chunk_parts(Layout.parse(text), layers, mtp)
    example = Layout.parse(shlex.split(refused.value.hint or "")[-1])
    parts = chunk_parts(example, layers, mtp)
    assert sum(part.layers for part in parts) == layers
    assert len(parts) == example.pp * example.interleave
    assert example.tp == Layout.parse(text).tp


def test_chunks_without_pp_get_the_hint_of_pp() -> None:
    with pytest.raises(LayoutError) as refused:
        chunk_parts(Layout.parse("stages=Et*8|t*8|t*8|t*8L"), 32)
    assert refused.value.hint == "write pp=4"
    assert len(chunk_parts(Layout.parse("pp=4,stages=Et*8|t*8|t*8|t*8L"), 32)) == 4
    with pytest.raises(LayoutError) as refused:
        Layout.parse("first=3")
    assert "pp=4" in (refused.value.hint or "")


def test_a_model_without_modules_for_multi_token_prediction_is_refused() -> None:
    with pytest.raises(SpecError, match="no modules"):
        training_run(LLAMA, 128, recipe=Recipe(mtp=True))


def test_parts_are_equal_by_value() -> None:
    assert chunk_parts(Layout(), 3) == [Part(layers=3, embedding=True, head=True)]


def test_the_chunks_in_flight_are_those_of_the_schedule() -> None:
    """Megatron's order of work, written out for a stage: which chunks are alive when a backward pass runs."""
    for stage, pp, micro_batches, kinds in ((0, 2, 4, 2), (1, 2, 6, 3), (3, 4, 8, 3), (0, 4, 8, 2), (3, 4, 5, 3)):
        layout = Layout(pp=pp, interleave=kinds)
        group = pp if micro_batches % pp == 0 else micro_batches
        units = [
            chunk
            for start in range(0, micro_batches, group)
            for chunk in range(kinds)
            for _ in range(min(group, micro_batches - start))
        ]
        warm_up = min(len(units), 2 * (pp - stage - 1) + (kinds - 1) * group)
        work = [("F", chunk) for chunk in units[:warm_up]]
        for index in range(len(units)):
            work += [("F", units[warm_up + index])] if warm_up + index < len(units) else []
            work.append(("B", kinds - 1 - units[index]))
        saved, alive, most = [1000 + 7 * chunk for chunk in range(kinds)], [0] * kinds, [0] * kinds
        for kind, chunk in work:
            alive[chunk] += 1 if kind == "F" else -1
            if kind == "B":
                most[chunk] = max(most[chunk], sum(n * size for n, size in zip(alive, saved, strict=True)))
        got = chunks_in_flight(stage, layout, micro_batches, saved)
        assert [sum(n * size for n, size in zip(counts, saved, strict=True)) for counts in got] == most


def test_megatrons_copies_of_activations() -> None:
    """FlashAttention through Transformer Engine, and router weights before the last product of ungated experts."""
    here = training_run(LLAMA, 512, precision="mixed-fp32-grads")
    there = training_run(LLAMA, 512, precision="mixed-fp32-grads", recipe=Recipe(batch_first=True))
    more = there.saved(there.stages[0].chunks[0]) - here.saved(here.stages[0].chunks[0])
    assert more == 32 * 512 * 4096 * 2
    experts = MoE(num_experts=4, num_experts_per_tok=2, intermediate_size=64, activation="gelu", gated=False)
    block = Layer(mixer=None, ffn=experts)
    spec = ModelSpec(
        name="x", pattern="1*moe", layers={"moe": block}, vocab_size=32, hidden_size=16, tie_word_embeddings=False
    )
    saved = [
        sum(op.saved_bytes for op in lower(spec, Workload.train(512, weights_before_down=before)))
        for before in (False, True)
    ]
    assert saved[1] - saved[0] == 512 * 2 * (64 * 2 + 4)  # the result of the activation, and an fp32 weight per row
