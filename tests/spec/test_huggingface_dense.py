"""Dense decoders without a class in transformers, compared with the counts of their checkpoints."""

from typing import Any

import pytest

from llmbench.errors import UnsupportedError
from llmbench.sizing.lower import lower
from llmbench.sizing.params import count_parameters
from llmbench.sizing.workload import Workload
from llmbench.spec.huggingface import from_config
from llmbench.spec.model import ModelSpec

LLAMA_7B = {
    "hidden_size": 4096,
    "intermediate_size": 11008,
    "num_attention_heads": 32,
    "num_hidden_layers": 32,
    "vocab_size": 32000,
}
CHATGLM = {
    "add_bias_linear": False,
    "add_qkv_bias": True,
    "ffn_hidden_size": 13696,
    "hidden_size": 4096,
    "kv_channels": 128,
    "multi_query_attention": True,
    "multi_query_group_num": 2,
    "num_attention_heads": 32,
}
MIMO_7B = {
    "attention_bias": True,
    "head_dim": 128,
    "hidden_size": 4096,
    "intermediate_size": 11008,
    "num_attention_heads": 32,
    "num_hidden_layers": 36,
    "num_key_value_heads": 8,
    "num_nextn_predict_layers": 1,
    "tie_word_embeddings": False,
    "vocab_size": 151680,
}
OPENELM_270M = {
    "ffn_multipliers": [
        0.5,
        0.73,
        0.97,
        1.2,
        1.43,
        1.67,
        1.9,
        2.13,
        2.37,
        2.6,
        2.83,
        3.07,
        3.3,
        3.53,
        3.77,
        4.0,
    ],
    "head_dim": 64,
    "model_dim": 1280,
    "normalize_qk_projections": True,
    "num_kv_heads": [3] * 5 + [4] * 7 + [5] * 4,
    "num_query_heads": [12] * 5 + [16] * 7 + [20] * 4,
    "num_transformer_layers": 16,
    "share_input_output_layers": True,
    "vocab_size": 32000,
}
PUBLISHED: list[tuple[str, dict[str, Any], int]] = [
    (
        "qwen",
        {**LLAMA_7B, "intermediate_size": 22016, "kv_channels": 128, "vocab_size": 151936},
        7_721_324_544,
    ),
    ("chatglm", {**CHATGLM, "num_layers": 28, "padded_vocab_size": 65024}, 6_243_584_000),
    ("chatglm", {**CHATGLM, "num_layers": 40, "padded_vocab_size": 151552}, 9_399_951_360),
    (
        "minicpm",
        {
            "hidden_size": 2304,
            "intermediate_size": 5760,
            "num_attention_heads": 36,
            "num_hidden_layers": 40,
            "vocab_size": 122753,
            "scale_emb": 12,
        },
        2_724_880_896,
    ),
    ("openelm", OPENELM_270M, 271_527_168),
    (
        "phi-msft",
        {
            "n_embd": 2560,
            "n_head": 32,
            "n_layer": 32,
            "n_positions": 2048,
            "rotary_dim": 32,
            "vocab_size": 51200,
        },
        2_779_683_840,
    ),
    ("aquila", LLAMA_7B, 6_738_415_616),
    ("mimo", MIMO_7B, 7_622_619_136),
]


def read(model_type: str, **values: Any) -> ModelSpec:
    """The spec of a config."""
    return from_config({"model_type": model_type, **values}, name=model_type)


@pytest.mark.parametrize(("model_type", "values", "total"), PUBLISHED)
def test_published_totals(model_type: str, values: dict[str, Any], total: int) -> None:
    """The exact count of the checkpoint, not marked approximate."""
    spec = read(model_type, **values)
    assert not spec.approximate
    assert count_parameters(spec).total == total


def test_the_files_of_mimo_also_have_a_module_for_the_next_token() -> None:
    counted = count_parameters(read("mimo", **MIMO_7B))
    assert counted.total + counted.next_token_prediction == 7_833_409_536


def test_puzzle_blocks() -> None:
    """A block of LLaMA's sizes is LLaMA's; one without attention has no cache; one replaced by a matrix is refused."""
    plain = {"attention": {"n_heads_in_group": 1}, "ffn": {"ffn_mult": 4.03125}}
    without = {"attention": {"no_op": True, "n_heads_in_group": None}, "ffn": plain["ffn"]}
    whole = read("nemotron-nas", **LLAMA_7B, block_configs=[plain] * 32)
    assert count_parameters(whole).total == 6_738_415_616
    half = read("nemotron-nas", **LLAMA_7B, block_configs=[plain, without] * 16)
    caches = sum(op.count for op in lower(half, Workload.prefill(8)) if op.cache and op.cache.per_token)
    assert caches == 16
    linear = {"attention": {"replace_with_linear": True}, "ffn": plain["ffn"]}
    with pytest.raises(UnsupportedError, match="replace_with_linear"):
        read("nemotron-nas", **LLAMA_7B, block_configs=[linear] * 32)


def test_projected_embedding_keeps_wide_positions() -> None:
    """OPT-350m adds positions of width hidden_size after the projection of its narrow embedding."""
    spec = read(
        "opt",
        do_layer_norm_before=False,
        ffn_dim=4096,
        hidden_size=1024,
        num_attention_heads=16,
        num_hidden_layers=24,
        word_embed_proj_dim=512,
    )
    assert count_parameters(spec).total == 331_196_416
    assert count_parameters(spec).components["position_embedding"] == 2050 * 1024
