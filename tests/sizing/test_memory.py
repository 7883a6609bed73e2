"""Training memory against traced steps and published runs; serving memory by hand."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path

import msgspec
import pytest

from llmbench.sizing.dtypes import bits_of
from llmbench.sizing.kvcache import kv_cache
from llmbench.sizing.lower import lower
from llmbench.sizing.memory import CONTEXT_BYTES, PARTS, WORKSPACE_BYTES, Memory, inference_memory
from llmbench.sizing.params import count_parameters
from llmbench.sizing.recipe import Recipe
from llmbench.sizing.training import training_memory
from llmbench.sizing.workload import Layout, Workload
from llmbench.spec.catalog import load_bundled
from llmbench.spec.ffn import Dense, Gated, MoE
from llmbench.spec.mixer import Attention
from llmbench.spec.model import Layer, ModelSpec, Norm
from llmbench.spec.override import override
from llmbench.spec.position import LearnedPositions, Rope
from llmbench.validation.kinds import validate

from ..oracles.training_memory import Trace, trace
from ..oracles.training_transformer import Dims, Setup

BOUND = 0.03
PRECISIONS = {"mixed": "bf16-mixed", "fp32": "fp32", "bf16": "bf16"}


def dims(vocab: int, hidden: int, layers: int, heads: int, kv_heads: int, inner: int, tied: bool = False) -> Dims:
    """A shape whose heads fill the hidden width."""
    return Dims(
        vocab=vocab,
        hidden=hidden,
        layers=layers,
        heads=heads,
        kv_heads=kv_heads,
        head_dim=hidden // heads,
        intermediate=inner,
        tied=tied,
    )


SMALL = {
    "gpt-1k": ("gpt2", 256, 1, dims(1000, 256, 4, 4, 4, 1024, True)),
    "gqa-32k": ("llama", 512, 2, dims(32000, 512, 4, 8, 2, 1376)),
    "mha-8k": ("llama", 1024, 1, dims(8000, 1024, 3, 16, 16, 2816)),
    "gpt-16k": ("gpt2", 1024, 2, dims(16000, 768, 5, 12, 12, 3072, True)),
    "mqa-32k": ("llama", 256, 3, dims(32000, 256, 4, 8, 1, 704, True)),
    "deep-4k": ("llama", 512, 1, dims(4000, 512, 10, 8, 4, 2048)),
    "gpt-2k": ("gpt2", 512, 3, dims(2000, 384, 2, 6, 6, 1536, True)),
    "tied-32k": ("llama", 1024, 2, dims(32000, 768, 3, 12, 4, 2048, True)),
}
FULL = {
    "llama2-7b": ("llama", 4096, 1, dims(32000, 4096, 32, 32, 32, 11008)),
    "llama3.2-1b": ("llama", 4096, 1, dims(128256, 2048, 16, 32, 8, 8192, True)),
    "mistral-7b-v0.3": ("llama", 4096, 2, dims(32768, 4096, 32, 32, 8, 14336)),
    "gpt2-xl": ("gpt2", 1024, 2, dims(50257, 1600, 48, 25, 25, 6400, True)),
}


def spec_of(style: str, seq: int, d: Dims) -> ModelSpec:
    """The traced model as a spec."""
    heads = {"num_attention_heads": d.heads, "num_key_value_heads": d.kv_heads, "head_dim": d.head_dim}
    if style == "llama":
        layer = Layer(mixer=Attention(**heads), ffn=Gated(intermediate_size=d.intermediate))
        rest = {"positions": Rope(), "norm": Norm()}
    else:
        mixer = Attention(**heads, qkv_bias=True, output_bias=True)
        layer = Layer(mixer=mixer, ffn=Dense(intermediate_size=d.intermediate, bias=True))
        rest = {"positions": LearnedPositions(num_positions=seq), "norm": Norm(kind="layernorm", bias=True)}
    return ModelSpec(
        name="traced",
        source="",
        pattern=f"{d.layers}*block",
        layers={"block": layer},
        vocab_size=d.vocab,
        hidden_size=d.hidden,
        tie_word_embeddings=d.tied,
        **rest,
    ).check()


def compare(spec: ModelSpec, traced: Trace, ours: Memory, *, recompute: str) -> None:
    """Peak, and what is saved when backward starts, within the bound."""
    assert ours.peak_bytes == sum(ours.parts_bytes.values())
    assert ours.parts_bytes["overhead"] == WORKSPACE_BYTES
    assert ours.parameters == traced.parameters == count_parameters(spec).total
    assert ours.peak_bytes - WORKSPACE_BYTES == pytest.approx(traced.peak_bytes, rel=BOUND)
    if recompute == "none":
        saved = traced.saved_bytes - traced.saved_by_module["loss"]
        assert ours.full_bytes["activations"] == pytest.approx(saved, rel=BOUND)


@pytest.mark.parametrize("attention", ["flash", "standard"])
@pytest.mark.parametrize("name", SMALL)
def test_small_models_as_traced(name: str, attention: str) -> None:
    """Each model has both kinds of attention, both values of `recompute` and two precisions. All models together have
    every pair of these."""
    style, seq, batch, shape = SMALL[name]
    spec = spec_of(style, seq, shape)
    index = list(SMALL).index(name)
    recompute = "full" if (index // 2 + (attention == "flash")) % 2 else "none"
    precision = list(PRECISIONS)[(index + index // 3 + (attention == "flash")) % 3]
    setup = Setup(style=style, precision=PRECISIONS[precision], attention=attention, recompute=recompute)
    ours = training_memory(
        spec,
        seq,
        micro_batch=batch,
        precision=precision,
        recompute=recompute,
        attention=attention,
        kernels="eager",
    )
    compare(spec, trace(shape, setup, batch=batch, seq=seq), ours, recompute=recompute)


@pytest.mark.parametrize(
    ("name", "precision", "attention", "recompute"),
    [
        ("llama2-7b", "mixed", "flash", "none"),
        ("llama3.2-1b", "mixed", "standard", "full"),
        ("mistral-7b-v0.3", "bf16", "flash", "full"),
        ("gpt2-xl", "bf16", "standard", "none"),
        ("llama3.2-1b", "fp32", "flash", "full"),
        ("llama3.2-1b", "fp32", "standard", "none"),
    ],
)
def test_full_size_models_as_traced(name: str, precision: str, attention: str, recompute: str) -> None:
    """Every pair of a precision, a kind of attention and a value of `recompute`."""
    style, seq, batch, shape = FULL[name]
    spec = load_bundled(name)
    setup = Setup(style=style, precision=PRECISIONS[precision], attention=attention, recompute=recompute)
    ours = training_memory(
        spec,
        seq,
        micro_batch=batch,
        precision=precision,
        recompute=recompute,
        attention=attention,
        kernels="eager",
    )
    compare(spec, trace(shape, setup, batch=batch, seq=seq), ours, recompute=recompute)


def test_accumulated_gradients_as_traced() -> None:
    """Megatron's fp32 gradient buffers: 18 bytes a parameter, at every moment."""
    style, seq, batch, shape = SMALL["mha-8k"]
    setup = Setup(style=style, gradients="fp32", persistent_gradients=True)
    ours = training_memory(
        spec_of(style, seq, shape), seq, micro_batch=batch, precision="mixed-fp32-grads", kernels="eager"
    )
    traced = trace(shape, setup, batch=batch, seq=seq)
    assert ours.peak_bytes - WORKSPACE_BYTES == pytest.approx(traced.peak_bytes, rel=BOUND)


CLOSE = 0.01


@pytest.mark.parametrize("name", ["gqa-32k", "mha-8k", "gpt-2k"])
def test_chunked_losses_as_traced(name: str) -> None:
    """torchtune's loss: all logits, and an fp32 copy of one chunk after another."""
    style, seq, batch, shape = SMALL[name]
    precision = list(PRECISIONS)[list(SMALL).index(name) % 3]
    setup = Setup(style=style, precision=PRECISIONS[precision], loss="chunked")
    ours = training_memory(
        spec_of(style, seq, shape), seq, micro_batch=batch, precision=precision, kernels="eager", loss="chunked"
    )
    traced = trace(shape, setup, batch=batch, seq=seq)
    assert ours.peak_bytes - WORKSPACE_BYTES == pytest.approx(traced.peak_bytes, rel=CLOSE)


@pytest.mark.parametrize(
    ("name", "step"),
    [
        ("gqa-32k", "foreach"),
        ("deep-4k", "foreach"),
        ("gqa-32k", "loop"),
        ("mha-8k", "loop"),
        ("gpt-16k", "backward"),
        ("tied-32k", "backward"),
    ],
)
def test_optimizer_steps_as_traced(name: str, step: str) -> None:
    """torch's AdamW on all tensors at once or on one after another, and updates in the backward pass.

    With 256 tokens, the peak depends on the step.
    """
    style, _, _, shape = SMALL[name]
    precision = "fp32" if list(SMALL).index(name) % 2 else "bf16"
    ours, fused = (
        training_memory(
            spec_of(style, 256, shape), 256, precision=precision, kernels="eager", recipe=Recipe(step=kind)
        ).peak_bytes
        for kind in (step, "fused")
    )
    traced = trace(shape, Setup(style=style, precision=precision, step=step), batch=1, seq=256)
    assert ours - WORKSPACE_BYTES == pytest.approx(traced.peak_bytes, rel=CLOSE)
    assert abs(ours - fused) > 3 * CLOSE * fused


@pytest.mark.parametrize("shape", [(256, 2, 4, 1), (512, 1, 2, 2), (1024, 1, 4, 2)])
def test_one_gpu_of_an_expert_grid_as_traced(shape: tuple[int, int, int, int]) -> None:
    """ep and etp over data-parallel GPUs: a share of the experts, a share of their width, the tokens of etp GPUs."""
    seq, batch, ep, etp = shape
    whole = dims(8000, 512, 4, 8, 4, 1024)
    layer = Layer(
        mixer=Attention(num_attention_heads=8, num_key_value_heads=4, head_dim=64),
        ffn=MoE(num_experts=8, num_experts_per_tok=2, intermediate_size=1024),
    )
    spec = msgspec.structs.replace(spec_of("llama", seq, whole), layers={"block": layer}).check()
    ours = training_memory(spec, seq, micro_batch=batch, layout=Layout(dp=ep * etp, ep=ep, etp=etp), kernels="eager")
    local = dataclasses.replace(whole, intermediate=1024 // etp, choices=8, chosen=2, experts=8 // ep, gathered=etp)
    traced = trace(local, Setup(), batch=batch, seq=seq)
    assert ours.parameters == traced.parameters
    saved = traced.saved_bytes - traced.saved_by_module["loss"]
    assert ours.full_bytes["activations"] == pytest.approx(saved, rel=CLOSE)
    assert ours.peak_bytes - WORKSPACE_BYTES == pytest.approx(traced.peak_bytes, rel=CLOSE)


# Published runs

PUBLISHED = Path(__file__).parents[2] / "benchmarks" / "published"


def test_published_runs() -> None:
    """Korthikanti's activations and states, and the peaks of SimuMax's Megatron-LM runs."""
    items = validate("memory", PUBLISHED / "training_runs.csv").items
    errors = {item.name: item.answer.figures[0].error for item in items if item.answer is not None}
    assert len(errors) == len(items)
    for source, count, bound in (("korthikanti", 6, 0.003), ("simumax", 8, 0.023)):
        own = [error for name, error in errors.items() if name.startswith(source)]
        assert len(own) == count
        assert max(map(abs, own)) <= bound


def test_published_runs_of_megatron() -> None:
    """Grids of experts, uneven stages, multi-token prediction, a hybrid: peaks and static bytes of the logging rank.

    The static bytes of runs on Blackwell that are not deterministic depend on cuBLAS's workspaces.
    """
    answers = [item.answer for item in validate("memory", PUBLISHED / "megatron_runs.csv").items]
    certain = [answer for answer in answers if answer is not None and not answer.doubt]
    assert len(answers) >= 20
    assert len(certain) >= len(answers) - 3
    errors = [abs(figure.error) for answer in certain for figure in answer.figures]
    assert len(errors) == 2 * len(certain)
    assert max(errors) < 0.01
    assert all(abs(answer.figures[0].error) < 0.025 for answer in answers if answer is not None)


def test_korthikanti_by_the_papers_own_formula() -> None:
    """Table 2: sbh(10 + 24/t + 5as/(ht)) a layer with tensor parallelism, sbh·34/t with sequence parallelism
    and selective recomputation; of 22B on 8 GPUs (48 layers, no pipeline)."""
    heads, hidden, seq, batch, tp = 64, 6144, 2048, 4, 8
    mixer = Attention(
        num_attention_heads=heads,
        num_key_value_heads=heads,
        head_dim=hidden // heads,
        qkv_bias=True,
        output_bias=True,
    )
    spec = ModelSpec(
        name="22b",
        source="arXiv 2205.05198",
        pattern="48*block",
        layers={"block": Layer(mixer=mixer, ffn=Dense(intermediate_size=4 * hidden, bias=True))},
        vocab_size=51200,
        hidden_size=hidden,
        tie_word_embeddings=True,
        positions=LearnedPositions(num_positions=seq),
        norm=Norm(kind="layernorm", bias=True),
    )
    sbh = seq * batch * hidden
    scores = 5 * heads * seq / hidden

    def saved(layout: str, recompute: str) -> int:
        memory = training_memory(
            spec,
            seq,
            micro_batch=batch,
            layout=Layout.parse(layout),
            recompute=recompute,
            attention="standard",
            dropout=True,
        )
        return memory.full_bytes["activations"]

    assert saved("tp=8", "none") == pytest.approx(48 * sbh * (10 + 24 / tp + scores / tp), rel=0.01)
    assert saved("tp=8,sp", "none") == pytest.approx(48 * sbh * (34 + scores) / tp, rel=0.01)
    assert saved("tp=8,sp", "selective") == pytest.approx(48 * sbh * 34 / tp, rel=0.01)
    # beside the layers' inputs, which the paper counts, those of the final norm and of the head, and one mask
    assert saved("tp=8", "full") == pytest.approx((48 + 2) * sbh * 2 + sbh, rel=0.01)


# Serving


@pytest.mark.parametrize("weights", ["bf16", "fp16", "fp32", "fp8", "int8", "int4"])
@pytest.mark.parametrize("name", ["llama2-7b", "deepseek-v3", "jamba-v0.1", "mistral-7b-v0.1"])
def test_serving_is_weights_and_cache_and_a_little(name: str, weights: str) -> None:
    spec = load_bundled(name)
    memory = inference_memory(spec, 8192, batch=4, weights=weights)
    inside = sum(
        op.count * math.prod(op.matrix)
        for op in lower(spec, Workload.prefill(1))
        if op.layer and op.matrix and op.component != "router"
    )
    counted = count_parameters(spec)
    outside = counted.total - inside  # tables, head, norms and biases stay in bf16
    corrections = 4 * counted.buffers  # the score corrections of routers are stored in fp32
    if weights in ("fp8", "int8", "int4"):
        least = inside * bits_of(weights) / 8 + 2 * outside + corrections
        scales = 2.5 / 128 * inside if weights == "int4" else 0.002 * inside
        assert least < memory.parts_bytes["weights"] <= least + 1.01 * scales
    else:
        assert memory.parts_bytes["weights"] == (inside + outside) * bits_of(weights) // 8 + corrections
    assert memory.parts_bytes["kv_cache"] == kv_cache(spec, 8192, batch=4).bytes_total
    assert memory.parts_bytes["logits"] == 4 * 4 * spec.vocab_size
    assert memory.parts_bytes["gradients"] == memory.parts_bytes["optimizer"] == 0
    assert set(memory.parts_bytes) == set(PARTS)
    assert memory.needed_bytes == memory.peak_bytes + CONTEXT_BYTES


def test_serving_halves_with_the_cache_and_the_gpus() -> None:
    spec = load_bundled("llama2-70b")
    bf16, fp8 = (inference_memory(spec, 4096, batch=8, kv_dtype=kind).parts_bytes for kind in ("bf16", "fp8"))
    assert bf16["kv_cache"] == 2 * fp8["kv_cache"] == 8 * 4096 * 80 * 2 * 8 * 128 * 2
    four = inference_memory(spec, 4096, batch=8, layout=Layout(tp=4)).parts_bytes
    assert bf16["kv_cache"] == 4 * four["kv_cache"]
    assert four["weights"] == pytest.approx(bf16["weights"] / 4, rel=0.001)
    staged = inference_memory(spec, 4096, batch=8, layout=Layout(pp=4))
    assert staged.parts_bytes["kv_cache"] == bf16["kv_cache"] // 4
    assert len(staged.stage_peaks) == 4


def test_training_has_its_own_precisions() -> None:
    from llmbench.errors import SpecError

    spec = override(load_bundled("gpt2"), {"num_hidden_layers": 2})
    for name in ("int8", "int4", "fp16"):
        with pytest.raises(SpecError, match="is unknown"):
            training_memory(spec, 128, precision=name)


def test_published_weights_decide_the_memory() -> None:
    """gpt-oss-20b has 13,761,264,768 bytes of tensors. GPT-2's files have fp32, which engines convert to bf16."""
    assert inference_memory(load_bundled("gpt-oss-20b"), 1).parts_bytes["weights"] == 13_761_264_768
    small = load_bundled("gpt2")
    assert inference_memory(small, 1).parts_bytes["weights"] == 2 * count_parameters(small).total
    assert inference_memory(small, 1, weights="fp32").parts_bytes["weights"] == 4 * count_parameters(small).total
    tied = load_bundled("qwen3-0.6b")  # in two stages, the head has its own copy of the table, quantised too
    one, two = (inference_memory(tied, 1, weights="mlx", layout=Layout(pp=pp)) for pp in (1, 2))
    table = tied.vocab_size * tied.hidden_size
    assert one.parts_bytes["weights"] < 2 * two.parts_bytes["weights"] < one.parts_bytes["weights"] + table


@pytest.mark.parametrize("name", ["deepseek-v3.2", "t5-base", "gemma3-4b", "jamba-v0.1", "qwen3-next-80b-a3b"])
def test_serving_counts_the_cache_of_kvcache(name: str) -> None:
    spec = load_bundled(name)
    assert inference_memory(spec, 4096, batch=3).parts_bytes["kv_cache"] == kv_cache(spec, 4096, batch=3).bytes_total


def test_a_batch_of_short_prompts_is_prefilled_together() -> None:
    spec = load_bundled("llama2-7b")
    one, many = (inference_memory(spec, 100, batch=batch).parts_bytes["activations"] for batch in (1, 50))
    assert many == 50 * one
    assert inference_memory(spec, 100, batch=10_000).parts_bytes["activations"] == 81 * one  # 8192 tokens hold 81


def test_context_parallelism_splits_the_cache() -> None:
    spec = load_bundled("llama3-70b")
    whole, half = (inference_memory(spec, 8192, layout=Layout(cp=cp)).parts_bytes["kv_cache"] for cp in (1, 2))
    assert whole == 2 * half


def test_a_tied_head_on_its_own_stage_has_a_copy() -> None:
    spec = load_bundled("gemma3-1b")
    untied = override(spec, {"tie_word_embeddings": False})
    tied_peaks, untied_peaks = (training_memory(model, 128, layout=Layout(pp=2)) for model in (spec, untied))
    assert tied_peaks.stage_peaks == untied_peaks.stage_peaks
    assert training_memory(spec, 128).parameters == count_parameters(spec).total


def test_fully_sharded_training_has_sixteen_bytes_per_parameter() -> None:
    spec = load_bundled("llama2-7b")
    full = training_memory(spec, 128, layout=Layout(dp=64, zero=3)).full_bytes
    states = full["weights"] + full["gradients"] + full["optimizer"]
    assert states == pytest.approx(16 * count_parameters(spec).total / 64, rel=1e-4)


def test_recurrent_training_says_it_is_approximate() -> None:
    assert training_memory(load_bundled("jamba-v0.1"), 128).approximate
    assert not training_memory(load_bundled("llama2-7b"), 128).approximate
