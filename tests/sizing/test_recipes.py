"""Recipes of a training step: losses, optimizer steps, formats of states, offloading, fp8 copies, imbalance."""

from __future__ import annotations

from typing import Any, Literal

import pytest

from llmbench.errors import SpecError
from llmbench.sizing.backward import backward_moments
from llmbench.sizing.lower import lower
from llmbench.sizing.params import count_parameters
from llmbench.sizing.peak import optimizer_moment, stage_peak
from llmbench.sizing.recipe import PrecisionName, Recipe
from llmbench.sizing.training import training_memory, training_run
from llmbench.sizing.workload import Layout, Workload
from llmbench.spec.catalog import load_bundled
from llmbench.spec.model import ModelSpec
from llmbench.spec.override import override

LLAMA = load_bundled("llama2-7b")
MIXTRAL = load_bundled("mixtral-8x7b")
N = count_parameters(LLAMA).total
TABLES = 2 * 32000 * 4096
NORMS = count_parameters(LLAMA).components["norms"]
MATRICES = N - TABLES - NORMS
MIB = 2**20


def test_texts_come_back() -> None:
    for text in (
        "step=foreach,states=fp8+fp16,master=remainder",
        "offload=states+activations,imbalance=1.25,mtp",
        "fp8=cached,fused_gradients=0,batch_first,framework=megatron,loader_mask=0,deferred_heads=2",
        "",
    ):
        assert str(Recipe.parse(text)) == text


@pytest.mark.parametrize(
    ("recipe", "optimizer", "bytes_per_parameter"),
    [
        ("", "adamw", 12),
        ("states=bf16", "adamw", 4 + 2 + 2),
        ("states=fp8+fp16,master=fp16", "adamw", 2 + 1 + 2),  # Megatron's precision-aware optimizer
        ("states=bf16,master=remainder", "adamw", 2 + 2 + 2),
        ("", "lion", 4 + 4),
        ("states=bf16", "lion", 4 + 2),
    ],
)
def test_formats_of_states(recipe: str, optimizer: str, bytes_per_parameter: int) -> None:
    full = training_memory(LLAMA, 64, optimizer=optimizer, recipe=Recipe.parse(recipe)).full_bytes
    assert full["optimizer"] == bytes_per_parameter * N


def test_megatrons_fused_loss_holds_an_fp32_copy_more() -> None:
    """So many logits that the peak is at the loss: bytes per logit by kind of loss."""
    tokens, vocab = 65536, 400_000
    spec = override(LLAMA, {"vocab_size": vocab})
    logits, hidden = tokens * vocab, tokens * 4096
    for loss, of_logits in (("plain", 2 + 4), ("fused", 2 + 4 + 4)):
        memory = training_memory(spec, tokens, loss=loss, recompute="full")
        assert memory.parts_bytes["logits"] == of_logits * logits, loss
    for loss, of_logits in (("plain", 4), ("fused", 4 + 4)):  # in fp32, without copies in another format
        loss_op = training_run(spec, tokens, loss=loss, precision="fp32").stages[0].ops[-1]
        assert loss_op.kind == "loss"
        assert max(loss_op.forward_bytes, loss_op.saved_bytes + loss_op.backward_bytes) == of_logits * logits, loss
    # the gradient, which overwrites the logits, is there until the head has used it
    inplace = training_memory(spec, tokens, loss="inplace", recompute="full").parts_bytes
    assert 2 * logits < inplace["logits"] + inplace["activations"] < 3 * logits
    eager = training_memory(spec, tokens, kernels="eager", recompute="full").parts_bytes["logits"]
    chunked = training_memory(spec, tokens, kernels="eager", loss="chunked", recompute="full")
    assert eager == 12 * logits  # an fp32 log-softmax and two fp32 temporaries
    assert chunked.parts_bytes["logits"] == (2 + 4) * logits + 4 * logits // 8
    compiled = next(op for op in training_run(spec, tokens, loss="chunked").stages[0].ops if op.kind == "loss")
    assert compiled.saved_bytes == 2 * logits + 4 * tokens  # the logits, and an fp32 number per token
    assert compiled.backward_bytes == 2 * logits // 8
    # kernels/loss/linear.py: gradients of the hidden states and of the head, and the logits of one chunk
    run = training_run(spec, tokens, loss="linear")
    loss_op = next(op for op in run.stages[0].ops if op.kind == "loss")
    assert loss_op.saved_bytes == 2 * hidden
    assert loss_op.forward_bytes == 2 * 2 * hidden + 2 * 4096 * vocab + 2 * tokens // 8 * vocab


def test_a_step_without_gradients() -> None:
    """The optimizer in the backward pass: of all gradients, only that of the running product exists."""
    here = training_memory(LLAMA, 64, precision="bf16")
    there = training_memory(LLAMA, 64, precision="bf16", recipe=Recipe(step="backward"))
    assert here.parts_bytes["gradients"] == pytest.approx(2 * N, rel=0.02)
    assert there.parts_bytes["gradients"] <= 2 * 32000 * 4096


def test_what_the_host_stores() -> None:
    whole = training_memory(LLAMA, 512)
    states = training_memory(LLAMA, 512, recipe=Recipe(offload=("states",)))
    assert states.host_bytes == {"optimizer": 12 * N}
    assert states.steady_bytes == whole.steady_bytes - 12 * N
    run = training_run(LLAMA, 4096, recipe=Recipe(offload=("activations",)))
    layer = run.checkpoint(run.stages[0].chunks[0].layers[0])
    assert stage_peak(run, run.stages[0]).host_bytes == {"activations": 31 * layer}
    layout = Layout(dp=8, zero=3)
    weights = training_memory(LLAMA, 512, layout=layout, recipe=Recipe(offload=("weights",)))
    # FSDP's CPU offload: fp32 shards of weights, gradients and two moments
    assert sum(weights.host_bytes.values()) == pytest.approx(16 * N / 8, rel=1e-5)
    assert weights.steady_bytes == weights.parts_bytes["overhead"]


def test_fp8_copies_of_transformer_engine() -> None:
    plain, cached, primary = (
        training_memory(LLAMA, 2048, recipe=Recipe(fp8=fp8)).full_bytes for fp8 in ("none", "cached", "primary")
    )
    assert plain["weights"] == 2 * N
    assert cached["weights"] == 2 * N + 2 * MATRICES
    assert primary["weights"] == 2 * MATRICES + 2 * (N - MATRICES)
    # per layer and token: the inputs of q, k, v and of gate, up, and of down in fp8, and an fp8 copy for the output
    saved = 2048 * 32 * (4096 + 4096 + 11008 - 4096)
    assert plain["activations"] - cached["activations"] == saved


def test_fp8_weights_have_a_master_copy_also_among_fp32_weights() -> None:
    plain, cached, primary = (
        training_memory(LLAMA, 2048, precision="fp32", recipe=Recipe(fp8=fp8)).full_bytes
        for fp8 in ("none", "cached", "primary")
    )
    assert cached["weights"] == plain["weights"] + 2 * MATRICES == 4 * N + 2 * MATRICES
    assert primary["weights"] == 2 * MATRICES + 4 * (N - MATRICES)
    assert (plain["optimizer"], cached["optimizer"], primary["optimizer"]) == (8 * N, 8 * N, 8 * N + 4 * MATRICES)


@pytest.mark.parametrize(
    ("precision", "fp8", "weights", "gradients", "optimizer"),
    [
        ("mixed", "none", 2 * N, 2 * N, 12 * N),
        ("mixed-fp32-grads", "none", 2 * N, 4 * N, 12 * N),
        ("mixed-fp32-grads", "primary", 2 * N - MATRICES, 4 * N, 12 * N),
        ("fp32", "primary", 4 * N - 3 * MATRICES, 4 * N, 8 * N + 4 * MATRICES),
    ],
)
def test_megatron_fsdp_stores_shards_of_weights_and_of_their_master_copy(
    precision: PrecisionName, fp8: Literal["none", "primary"], weights: int, gradients: int, optimizer: int
) -> None:
    """Transposes of fp8 weights exist only while a layer is gathered."""
    recipe = Recipe(framework="megatron", fp8=fp8)
    full = training_memory(LLAMA, 512, precision=precision, layout=Layout(dp=8, zero=3), recipe=recipe).full_bytes
    for part, size in (("weights", weights), ("gradients", gradients), ("optimizer", optimizer)):
        assert full[part] == pytest.approx(size / 8, rel=1e-6), part


@pytest.mark.parametrize(("layout", "received"), [("pp=4", 1), ("pp=4,interleave=2", 2), ("tp=2,sp,pp=4", 1), ("", 0)])
def test_megatron_keeps_the_last_input_of_each_chunk_and_its_gradient(layout: str, received: int) -> None:
    """2 × 4,096 bytes per token each. The first chunk of the model receives no hidden states."""
    plain, megatron = (
        training_run(LLAMA, 512, layout=Layout.parse(layout), precision="fp32", recipe=Recipe(framework=framework))
        for framework in ("torch", "megatron")
    )
    kept = [megatron.kept_inputs(stage) for stage in megatron.stages]
    size = 2 * 4 * 512 * 4096 // (2 if "sp" in layout else 1)
    assert kept == [max(0, received - 1) * size, *[received * size] * (len(kept) - 1)]
    assert not any(map(plain.kept_inputs, plain.stages))
    last = stage_peak(megatron, megatron.stages[-1])
    resident = megatron.resident(megatron.stages[-1])
    held = resident.weights + resident.gradients + resident.states + megatron.workspace_bytes
    assert last.steady_bytes == held + kept[-1]
    assert optimizer_moment(megatron, resident).activations == kept[-1]


def test_split_gradients_exist_whole_until_a_layer_is_done() -> None:
    """Only gradients that are not split have a buffer to which a matrix product can add."""
    most = []
    for zero in (1, 2):
        run = training_run(LLAMA, 512, precision="mixed-fp32-grads", layout=Layout(dp=8, zero=zero))
        most.append(max(moment.gradients for moment in backward_moments(run, run.stages[0].chunks[0])))
    norm = 2 * 4096  # the second one of a layer, which runs backward first
    assert most == [2 * 32000 * 4096, 2 * MATRICES // 32 + norm]  # the gradient of a table, and those of a layer


def test_parts_of_a_layer_that_are_computed_again() -> None:
    """Megatron's --recompute-modules: what each part saves no more, per layer and token."""

    def less(spec: ModelSpec, modules: str, **options: Any) -> int:
        plain, again = (
            training_run(spec, 512, recipe=Recipe.parse(text), **options) for text in ("", f"recompute={modules}")
        )
        layers = (run.stages[0].chunks[0].layers[-1] for run in (plain, again))
        plain_bytes, again_bytes = (run.checkpoint(layer) for run, layer in zip((plain, again), layers, strict=True))
        return (plain_bytes - again_bytes) // 512

    assert less(LLAMA, "layernorm") == 2 * 2 * 4096
    assert less(LLAMA, "mlp") == 3 * 2 * 11008
    assert less(LLAMA, "core_attn", attention="standard") == 2 * 32 * 512
    assert less(MIXTRAL, "moe_act") == 2 * 2 * 14336
    deepseek = load_bundled("deepseek-v3")
    # the inputs of both up-projections, and queries, keys and values of 128 heads
    assert less(deepseek, "mla_up_proj") == 2 * (1536 + 512 + 128 * (192 + 192 + 128))
    assert less(deepseek, "shared_experts") == 3 * 2 * 2048
    selective = training_memory(LLAMA, 512, attention="standard", recompute="selective")
    assert selective == training_memory(LLAMA, 512, attention="standard", recipe=Recipe.parse("recompute=core_attn"))
    # a part is computed again as a whole, so the peak falls by less than what is not saved
    here, there = (training_memory(LLAMA, 8192, recipe=Recipe.parse(text)) for text in ("", "recompute=mlp"))
    assert there.peak_bytes < here.peak_bytes


def test_weights_that_fsdp_has_gathered() -> None:
    layer, tables = 2 * 202_383_360, 2 * (32000 * 4096)
    whole = 2 * tables + 2 * 4096  # embedding, head, final norm

    def gathered(spec: ModelSpec, recipe: str = "", layout: str = "dp=8,zero=3") -> list[int]:
        run = training_run(spec, 64, layout=Layout.parse(layout), recipe=Recipe.parse(recipe))
        sizes = run.gathered(run.stages[0])
        return [sizes[place] for place in ("loss", "after", "layer", "before", "optimizer")]

    assert gathered(LLAMA) == [whole, whole + layer, whole + 2 * layer, whole, 0]
    assert gathered(LLAMA, "table_units") == [0, tables + 2 * 4096 + layer, 2 * layer, tables, 0]
    tied = override(LLAMA, {"tie_word_embeddings": True})
    assert gathered(tied, "table_units")[1] == tables + 2 * 4096 + layer
    assert gathered(LLAMA, layout="pp=2,dp=8,zero=3") == 4 * [tables + 16 * layer] + [0]
    assert gathered(LLAMA, layout="dp=8,zero=2") == 5 * [0]
    at_loss = training_memory(LLAMA, 65536, recompute="full", layout=Layout(dp=8, zero=3))
    assert (at_loss.moment, at_loss.parts_bytes["weights"]) == ("loss", whole)
    assert at_loss.reserved_bytes - at_loss.peak_bytes == 2 * layer  # free blocks of the stream that gathers


def test_imbalance_belongs_to_the_experts() -> None:
    even, skewed = (
        {op.name: op for op in lower(MIXTRAL, Workload.train(1024, imbalance=factor), Layout(dp=8, ep=8))}
        for factor in (1.0, 1.5)
    )
    for name, op in even.items():
        grows = ".experts." in name or name.endswith((".dispatch", ".combine"))
        assert (
            skewed[name].written_bytes == pytest.approx(op.written_bytes * (1.5 if ".experts." in name else 1)) or grows
        )
        if op.component == "experts" and op.forward_flops:
            assert skewed[name].forward_flops == 1.5 * op.forward_flops


def test_dropout_saves_masks() -> None:
    here, there = (training_memory(LLAMA, 512, dropout=dropout).full_bytes["activations"] for dropout in (False, True))
    assert there - here == (1 + 32 * 2) * 512 * 4096


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"recipe": "step=foreach", "optimizer": "muon"}, "temporaries of muon"),
        ({"recipe": "master=fp16", "precision": "bf16"}, "no master copy"),
        ({"recipe": "states=bf16", "optimizer": "adamw-8bit"}, "fixed"),
        ({"recipe": "states=fp8+fp16", "optimizer": "lion"}, "two moments"),
        ({"recipe": "step=backward", "micro_batches": 4}, "one micro-batch"),
        ({"recipe": "offload=weights"}, "zero=3"),
        ({"recipe": "fp8=cached,framework=megatron", "layout": Layout(dp=2, zero=3)}, "gathered"),
        ({"recipe": "fp8=primary", "layout": Layout(dp=2, zero=3)}, "gathered"),
        ({"recipe": "table_units", "layout": Layout(dp=2, zero=2)}, "zero=3"),
        ({"recipe": "deterministic"}, "framework=megatron"),
    ],
)
def test_contradictions_are_refused(options: dict[str, object], message: str) -> None:
    with pytest.raises(SpecError, match=message):
        training_memory(LLAMA, 64, **{**options, "recipe": Recipe.parse(str(options["recipe"]))})


@pytest.mark.parametrize(
    "text",
    [
        "step",
        "step=slow",
        "states=fp8+fp9",
        "imbalance=0.5",
        "imbalance=nan",
        "imbalance=1_0",
        "imbalance=\u0661",
        "mtp=2",
        "mtp,mtp",
        "what=1",
    ],
)
def test_wrong_texts_are_refused(text: str) -> None:
    with pytest.raises(SpecError, match="recipe"):
        Recipe.parse(text)
