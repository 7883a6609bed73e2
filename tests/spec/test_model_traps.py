"""Exact figures that sizing tools often get wrong. Each is one detail of an architecture."""

from __future__ import annotations

import pytest

from llmbench.sizing.lower import lower
from llmbench.sizing.op import Cache
from llmbench.sizing.params import Parameters, count_parameters
from llmbench.sizing.workload import Layout, Workload
from llmbench.spec.catalog import load_bundled
from llmbench.spec.ffn import Gated, MoE
from llmbench.spec.huggingface import from_config
from llmbench.spec.mixer import Attention, LatentAttention
from llmbench.spec.model import ModelSpec
from llmbench.spec.override import override
from llmbench.spec.position import LearnedPositions, NoPositions, Rope

from ..oracles.huggingface_export import same_model, to_config


def parameters(name: str) -> Parameters:
    return count_parameters(load_bundled(name))


def attention(name: str, kind: str = "block") -> Attention:
    mixer = load_bundled(name).layers[kind].mixer
    assert isinstance(mixer, Attention)
    return mixer


def experts(name: str, kind: str = "block") -> MoE:
    ffn = load_bundled(name).layers[kind].ffn
    assert isinstance(ffn, MoE)
    return ffn


def norms(name: str, kind: str = "block") -> int:
    """The number of norms over the hidden size in one layer."""
    ops = lower(load_bundled(name), Workload.prefill(1), Layout())
    return sum(op.layer == kind and op.name.count(".") == 2 and op.name.endswith("norm") for op in ops)


def caches(name: str) -> list[tuple[int, Cache]]:
    """(layers, what one of them keeps)."""
    ops = lower(load_bundled(name), Workload.prefill(1), Layout())
    return [(op.count, op.cache) for op in ops if op.cache is not None]


def per_token(name: str) -> int:
    """Cached elements of a token in all layers."""
    return sum(count * cache.per_token for count, cache in caches(name))


def test_tied_heads() -> None:
    assert parameters("llama3.2-1b").total == 1_235_814_400
    untied = override(load_bundled("llama3.2-1b"), {"tie_word_embeddings": False})
    assert count_parameters(untied).total == 1_498_482_688
    assert parameters("falcon-7b").total == 6_921_720_704


def test_t5() -> None:
    assert load_bundled("t5-base").tie_word_embeddings
    assert not load_bundled("flan-t5-base").tie_word_embeddings
    assert parameters("flan-t5-base").total == 247_577_856
    assert parameters("t5-base").components["attention_extra"] == 2 * 32 * 12  # one table a stack
    wide = attention("t5-11b")
    assert wide.num_attention_heads * wide.head_dim == 16_384
    assert load_bundled("t5-11b").hidden_size == 1_024
    assert parameters("t5-11b").total == 11_307_321_344


def test_multi_token_prediction_is_apart() -> None:
    counts = parameters("deepseek-v3")
    assert counts.total == 671_026_404_352
    shared_again = 2 * 129_280 * 7_168  # the repository stores embedding and head a second time with the module
    assert round((counts.total + counts.next_token_prediction + shared_again) / 1e9, 1) == 684.5


def test_router_correction_is_a_buffer() -> None:
    assert parameters("deepseek-v3").buffers == 14_848
    assert experts("deepseek-v3", "moe").router.correction == "buffer"


def test_deepseek_v2_lite() -> None:
    spec = load_bundled("deepseek-v2-lite")
    mixer = spec.layers["moe"].mixer
    assert isinstance(mixer, LatentAttention)
    assert mixer.q_lora_rank is None
    assert spec.order.index("moe") == 1
    assert load_bundled("deepseek-v3").order.index("moe") == 3
    assert count_parameters(spec).total == 15_706_484_224


def test_latent_cache() -> None:
    assert per_token("deepseek-v3") * 2 == 70_272
    assert {cache.per_token * 2 for _, cache in caches("deepseek-v3")} == {1_152}
    extra = parameters("deepseek-v3.2")
    assert extra.total - parameters("deepseek-v3").total == 851_524_864
    assert sum(count * cache.indexer_per_token for count, cache in caches("deepseek-v3.2")) * 2 == 15_616


@pytest.mark.parametrize("name", ["qwen2-7b", "qwen2.5-72b", "glm-4-9b"])
def test_biases_on_q_k_and_v_only(name: str) -> None:
    mixer = attention(name)
    assert (mixer.qkv_bias, mixer.output_bias) == (True, False)


def test_gated_shared_expert() -> None:
    assert parameters("qwen1.5-moe-a2.7b").components["shared_experts"] == 830_521_344


@pytest.mark.parametrize(
    ("name", "elements"),
    [
        ("qwen3-8b", 36 * 2 * 128),  # one weight of head_dim for all heads
        ("olmo2-7b", 32 * 2 * 4_096),  # over the full width
        ("command-r-plus", 64 * (96 + 8) * 128),  # each head its own
        ("llama4-scout", 0),  # no weights
        ("llama3-8b", 0),
    ],
)
def test_qk_norm_widths(name: str, elements: int) -> None:
    assert parameters(name).components["attention_norms"] == elements


def test_norms_and_biases_of_the_gpt_line() -> None:
    assert [norms(f"falcon-{size}") for size in ("7b", "40b", "180b")] == [1, 2, 2]
    assert parameters("olmo-7b").components["norms"] == 0
    assert load_bundled("bloom-7b1").embedding.norm
    gptj = load_bundled("gpt-j-6b")
    assert norms("gpt-j-6b") == 1
    assert gptj.head.bias
    assert not attention("gpt-j-6b").qkv_bias
    assert load_bundled("phi-2").head.bias
    positions = load_bundled("opt-125m").positions
    assert positions == LearnedPositions(num_positions=2_050, offset=2)
    assert parameters("llama2-7b").components["norms"] == 266_240


def test_opt_350m_projects_its_embedding() -> None:
    config = {"model_type": "opt", "hidden_size": 1024, "ffn_dim": 4096, "num_hidden_layers": 24}
    config |= {"num_attention_heads": 16, "vocab_size": 50272, "word_embed_proj_dim": 512}
    spec = from_config(config | {"do_layer_norm_before": False}, name="opt-350m")
    assert count_parameters(spec).total == 331_196_416
    assert same_model(from_config(to_config(spec), name="opt-350m")) == same_model(spec)


def test_gemma() -> None:
    for size, head_dim in (("2b", 256), ("9b", 256), ("27b", 128)):
        assert [norms(f"gemma2-{size}", kind) for kind in ("local", "global")] == [4, 4]
        assert attention(f"gemma2-{size}", "global").head_dim == head_dim
    order = load_bundled("gemma3-27b").order
    assert (order.count("local"), order.count("global")) == (52, 10)
    assert order[:6] == ("local",) * 5 + ("global",)


def test_gpt_oss() -> None:
    spec = load_bundled("gpt-oss-20b")
    local, wide = attention("gpt-oss-20b", "local"), attention("gpt-oss-20b", "global")
    assert spec.order[:2] == ("local", "global")
    assert (local.sliding_window, wide.sliding_window) == (128, None)
    assert local.sinks
    assert local.qkv_bias
    assert local.output_bias
    assert experts("gpt-oss-20b", "local").bias
    assert experts("gpt-oss-20b", "local").router.bias
    assert (local.num_attention_heads * local.head_dim, spec.hidden_size) == (4_096, 2_880)
    assert count_parameters(spec).components["attention_extra"] == 24 * 64


def test_llama4() -> None:
    scout, maverick = load_bundled("llama4-scout"), load_bundled("llama4-maverick")
    assert scout.order[:4] == ("chunked_moe",) * 3 + ("global_moe",)
    assert attention("llama4-scout", "chunked_moe").attention_chunk_size == 8_192
    assert isinstance(attention("llama4-scout", "global_moe").positions, NoPositions)
    sparse = [isinstance(maverick.layers[kind].ffn, MoE) for kind in maverick.order]
    assert sparse == [False, True] * 24
    widths = {layer.ffn.intermediate_size for layer in maverick.layers.values() if layer.ffn is not None}
    assert widths == {8_192, 16_384}


def test_hybrids() -> None:
    gated = attention("qwen3-next-80b-a3b", "attention")
    assert gated.output_gate == "elementwise"
    growing = [count for count, cache in caches("qwen3-next-80b-a3b") if cache.per_token]
    fixed = [count for count, cache in caches("qwen3-next-80b-a3b") if cache.state]
    assert (growing, fixed) == ([12], [36])
    nemotron = load_bundled("nemotron-h-56b")
    assert len(nemotron.order) == 118
    assert {kind: nemotron.order.count(kind) for kind in nemotron.layers} == {
        "mamba": 54,
        "mlp": 54,
        "attention": 10,
    }
    griffin = load_bundled("recurrentgemma-2b").layers["recurrent"].ffn
    assert isinstance(griffin, Gated)
    assert griffin.intermediate_size == 7_680
    jamba = load_bundled("jamba-v0.1")
    assert sum(isinstance(jamba.layers[kind].mixer, Attention) for kind in jamba.order) == 4
    assert sum(isinstance(jamba.layers[kind].ffn, MoE) for kind in jamba.order) == 16


def test_conventions_of_active_parameters() -> None:
    counts = parameters("mixtral-8x7b")
    assert counts.active == 12_879_925_248
    assert counts.active_no_input_embedding == counts.active - 32_000 * 4_096
    assert counts.active_no_embeddings == counts.active - 2 * 32_000 * 4_096
    assert round(parameters("glam-64b").active / 1e9, 1) == 96.6
    assert round(parameters("gpt-oss-120b").active_no_input_embedding / 1e9, 2) == 5.13
    assert round(parameters("qwen3-235b-a22b").active / 1e9) == 22


def test_windows_and_heads_of_the_textbook() -> None:
    assert [attention(name).label for name in ("llama-7b", "llama2-7b", "llama2-13b", "llama2-70b")] == [
        "MHA",
        "MHA",
        "MHA",
        "GQA",
    ]
    mistral = attention("mistral-7b-v0.1")
    assert (mistral.num_attention_heads, mistral.num_key_value_heads, mistral.sliding_window) == (
        32,
        8,
        4_096,
    )
    assert attention("mistral-7b-v0.3").sliding_window is None
    assert load_bundled("gpt2").layers["block"].placement == "pre"
    assert load_bundled("bloom-176b").layers["block"].placement == "pre"
    assert attention("palm-540b").label == attention("falcon-7b").label == attention("starcoder").label == "MQA"
    parallel = ("parallel", "parallel_two")
    for name in ("palm-8b", "gpt-j-6b", "gpt-neox-20b", "falcon-7b", "falcon-40b"):
        assert load_bundled(name).layers["block"].placement in parallel


def test_rotation() -> None:
    def rope(spec: ModelSpec) -> Rope:
        assert isinstance(spec.positions, Rope)
        return spec.positions

    assert rope(load_bundled("gpt-j-6b")) == Rope(rotary_dim=64, interleaved=True)
    assert rope(load_bundled("pythia-6.9b")).rotary_dim == 32
    scaling = rope(load_bundled("phi-4-mini")).scaling
    assert scaling is not None
    assert len(scaling.short_factor) == len(scaling.long_factor) == 48
