"""FLOPs against torch's FlopCounterMode on transformers' classes, and by hand where the counter has no formula."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from llmbench.errors import SpecError
from llmbench.sizing.flops import count_flops, step_flops
from llmbench.sizing.lower import lower
from llmbench.sizing.params import count_parameters
from llmbench.sizing.workload import Workload
from llmbench.spec.catalog import bundled_models, load_bundled
from llmbench.spec.huggingface import from_config
from llmbench.spec.override import override

from ..oracles import transformers_meta as oracle

COMMON = {
    "vocab_size": 1000,
    "hidden_size": 64,
    "intermediate_size": 160,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
GPT = {"n_embd": 64, "n_head": 4, "n_layer": 3, "vocab_size": 1000, "bos_token_id": 1, "eos_token_id": 2}
EXPERTS = {"moe_intermediate_size": 40, "num_experts": 8, "num_experts_per_tok": 3}
LATENT = {
    "kv_lora_rank": 24,
    "qk_nope_head_dim": 16,
    "qk_rope_head_dim": 8,
    "v_head_dim": 12,
    "n_routed_experts": 8,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 40,
    "first_k_dense_replace": 1,
    "topk_group": 1,
}
TINY: dict[str, dict[str, Any]] = {
    "llama": COMMON,
    "mistral": COMMON | {"sliding_window": 16},
    "qwen3": COMMON | {"head_dim": 24},
    "gemma2": COMMON | {"head_dim": 32, "sliding_window": 16},
    "gemma3_text": COMMON | {"head_dim": 32, "sliding_window": 16},
    "phi3": COMMON,
    "cohere": COMMON,
    "olmo2": COMMON,
    "starcoder2": COMMON,
    "stablelm": COMMON,
    "gpt2": GPT | {"n_positions": 512},
    "gptj": GPT | {"rotary_dim": 8},
    "bloom": {"hidden_size": 64, "n_head": 4, "n_layer": 3, "vocab_size": 1000},
    "falcon": {"hidden_size": 64, "num_attention_heads": 4, "num_hidden_layers": 3, "vocab_size": 1000},
    "bert": {key: COMMON[key] for key in COMMON if key != "num_key_value_heads"},
    "t5": {"d_model": 64, "d_ff": 160, "num_layers": 3, "num_heads": 4, "d_kv": 16, "vocab_size": 1000},
    "mixtral": COMMON | {"num_local_experts": 8, "num_experts_per_tok": 2},
    "qwen2_moe": COMMON | EXPERTS | {"shared_expert_intermediate_size": 80},
    "qwen3_moe": COMMON | EXPERTS,
    "gpt_oss": COMMON
    | {
        "num_local_experts": 8,
        "num_experts_per_tok": 2,
        "head_dim": 16,
        "sliding_window": 16,
        "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0},
    },
}


@pytest.mark.parametrize("model_type", TINY)
@pytest.mark.parametrize("seq", [1, 48])
def test_forward_equals_the_flop_counter(model_type: str, seq: int) -> None:
    config = {"model_type": model_type, **TINY[model_type]}
    spec = from_config(config, name=model_type)
    assert spec.approximate == ()
    counted = oracle.measure(config, sequence_length=seq).flops
    assert counted
    assert count_flops(spec, Workload.prefill(seq, masked_pairs=True)).total == counted


def on_cpu(config: dict[str, Any], batch: int, seq: int, *, backward: bool) -> int:
    """What the counter counts in a real forward (and backward) of transformers' class."""
    from transformers import AutoConfig, AutoModelForCausalLM

    hf_config = AutoConfig.for_model(**config)
    model = AutoModelForCausalLM.from_config(hf_config, attn_implementation="eager")
    if hasattr(model, "set_experts_implementation"):
        model.set_experts_implementation("eager")
    tokens = torch.zeros((batch, seq), dtype=torch.long)
    with FlopCounterMode(display=False) as counter:
        loss = model(input_ids=tokens).logits.sum()
        if backward:
            loss.backward()
    return counter.get_total_flops()


@pytest.mark.parametrize("model_type", ["llama", "qwen3", "gpt2", "gemma2"])
@pytest.mark.parametrize("batch", [1, 3])
def test_backward_is_twice_forward_in_the_counter_too(model_type: str, batch: int) -> None:
    config = {"model_type": model_type, **TINY[model_type]}
    spec = from_config(config, name=model_type)
    ours = count_flops(spec, Workload.train(32, batch, masked_pairs=True, attention="standard"))
    rotation = 0 if model_type == "gpt2" else 2 * batch * 32 * (spec.layers[spec.order[0]].mixer.head_dim // 2)
    counted = on_cpu(config, batch, 32, backward=True)
    assert counted - ours.total in (0, rotation, 2 * rotation)  # outer products that make the angles
    assert counted - ours.total <= counted / 2000
    assert ours.recompute == 0


@pytest.mark.parametrize("model_type", ["deepseek_v2", "deepseek_v3"])
@pytest.mark.parametrize("rank", [None, 32])
def test_latent_attention_is_counted_expanded(model_type: str, rank: int | None) -> None:
    """Feed-forwards are dense here: of experts, a real forward runs those that its tokens meet."""
    config = COMMON | LATENT | {"model_type": model_type, "q_lora_rank": rank, "num_key_value_heads": 4}
    config |= {"n_group": 1, "first_k_dense_replace": 3}
    spec = from_config(config, name=model_type)
    assert spec.approximate == ()
    ours = count_flops(spec, Workload.prefill(24, masked_pairs=True))
    counted = on_cpu(config, 1, 24, backward=False)
    assert 0 <= counted - ours.total <= 2 * 24 * 8  # the angles


# By hand


def test_llama2_7b_by_hand() -> None:
    layer = 4 * 4096**2 + 3 * 4096 * 11008
    weights = 32 * layer + 32000 * 4096
    for seq in (1, 512, 4096):
        pairs = seq * (seq + 1) // 2
        here = count_flops(load_bundled("llama2-7b"), Workload.prefill(seq))
        assert here.matmul == 2 * seq * weights
        assert here.attention == 32 * 32 * 4 * 128 * pairs
        full = count_flops(load_bundled("llama2-7b"), Workload.prefill(seq, masked_pairs=True))
        assert full.attention == 32 * 32 * 4 * 128 * seq**2
        assert here.per_token == here.total / seq
    decoded = count_flops(load_bundled("llama2-7b"), Workload.decode(4096, 8))
    assert decoded.total == 8 * (2 * weights + 32 * 32 * 4 * 128 * 4097)
    assert decoded.tokens == 8


def test_a_window_bounds_the_pairs() -> None:
    windowed = load_bundled("mistral-7b-v0.1")
    free = override(windowed, {"sliding_window": None})
    assert count_flops(windowed, Workload.prefill(4096)) == count_flops(free, Workload.prefill(4096))
    beyond = count_flops(windowed, Workload.prefill(16384))
    pairs = 4096 * 4097 // 2 + (16384 - 4096) * 4096
    assert beyond.attention == 32 * 32 * 4 * 128 * pairs
    decode = count_flops(windowed, Workload.decode(16384))
    assert decode.attention == 32 * 32 * 4 * 128 * 4096
    full = count_flops(windowed, Workload.prefill(16384, masked_pairs=True))
    assert full == count_flops(free, Workload.prefill(16384, masked_pairs=True))


def test_latent_attention_absorbed() -> None:
    """Absorbed, a pair costs 2·(2·512 + 64) a head; expanded 2·(128 + 64 + 128); weights cost the same."""
    spec = load_bundled("deepseek-v3")
    absorbed = count_flops(spec, Workload.decode(4096))
    expanded = count_flops(spec, Workload.decode(4096, absorbed_mla=False))
    assert absorbed.attention == 61 * 128 * 2 * (2 * 512 + 64) * 4097
    assert expanded.attention == 61 * 128 * 2 * (128 + 64 + 128) * 4097
    assert absorbed.matmul == expanded.matmul == 2 * count_parameters(spec).active_matmul
    assert count_flops(spec, Workload.prefill(64)).attention == 61 * 128 * 2 * 320 * 64 * 65 // 2


def test_an_indexer_bounds_the_keys_of_attention() -> None:
    spec = load_bundled("deepseek-v3.2")
    ops = {op.name: op for op in lower(spec, Workload.decode(8192, absorbed_mla=False))}
    core, scores = ops["layers.{}.attention.core"], ops["layers.{}.attention.indexer.core"]
    assert core.forward_flops == 128 * 2 * 320 * 2048
    assert scores.forward_flops == 2 * 64 * (128 + 1) * 8193


def test_only_chosen_experts_count() -> None:
    spec = load_bundled("mixtral-8x7b")
    ops = [op for op in lower(spec, Workload.prefill(10)) if op.component == "experts"]
    assert sum(step_flops(op, Workload.prefill(10)) for op in ops) == 32 * 10 * 2 * (2 * 3 * 4096 * 14336)


# What surrounds them


@pytest.mark.parametrize("name", bundled_models())
def test_the_rule_of_thumb_and_the_weights(name: str) -> None:
    spec = load_bundled(name)
    counts = count_parameters(spec)
    prefill, train = count_flops(spec, Workload.prefill(7, 3)), count_flops(spec, Workload.train(7, 3))
    assert prefill.tokens == train.tokens == 21
    assert prefill.rule == 2 * counts.active_no_embeddings * 21
    assert train.rule == 6 * counts.active_no_embeddings * 21
    assert train.total == 3 * prefill.total
    if spec.encoder is None:
        extra = count_flops(spec, Workload.prefill(1))
        assert extra.matmul == 2 * counts.active_matmul


def test_recomputed_flops_are_not_in_the_total() -> None:
    spec = load_bundled("llama2-7b")
    work = Workload.train(2048)
    none, selective, full = (count_flops(spec, work, recompute=mode) for mode in ("none", "selective", "full"))
    assert none.total == selective.total == full.total
    scores = 32 * 32 * 2 * 128 * 2048 * 2049 // 2  # flash computes Q·K again in any backward
    assert none.recompute == scores
    assert selective.recompute == scores  # flash saves no scores that could be recomputed
    head = 2 * 2048 * 32000 * 4096
    assert full.recompute == scores + none.total // 3 - head
    standard = Workload.train(2048, attention="standard")
    assert count_flops(spec, standard).recompute == 0
    assert count_flops(spec, standard, recompute="selective").recompute == none.attention // 3
    assert count_flops(spec, Workload.prefill(8), recompute="full").recompute == 0
    # torchtitan's: attention and every second of q, k, v, o, gate, up, down (q, v, gate, down) are kept
    others = 32 * 2 * 2048 * (2 * 4096**2 + 4096 * 11008)
    assert count_flops(spec, work, recompute="every-second").recompute == scores + others


def test_gpt3_by_the_paper() -> None:
    """Brown et al., table D.1: 3.14e23 FLOPs for 300 B tokens, as 6·N a token."""
    spec = load_bundled("gpt3-175b")
    train = count_flops(spec, Workload.train(2048))
    assert train.rule / train.tokens * 300e9 == pytest.approx(3.14e23, rel=0.01)
    assert train.per_token * 300e9 == pytest.approx(3.14e23, rel=0.03)


@pytest.mark.parametrize(("query", "key", "batch"), [(0, 1, 1), (1, 0, 1), (5, 4, 1), (1, 1, 0), (1, 1, -1)])
def test_impossible_workloads_are_refused(query: int, key: int, batch: int) -> None:
    with pytest.raises(SpecError):
        Workload(phase="prefill", query_len=query, kv_len=key, batch=batch)
