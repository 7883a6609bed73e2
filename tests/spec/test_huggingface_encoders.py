"""Encoders and encoder-decoders that change a part of BERT or BART, compared with their classes in transformers."""

from __future__ import annotations

from typing import Any

import pytest

from llmbench.sizing.lower import lower
from llmbench.sizing.params import count_parameters
from llmbench.sizing.workload import Workload
from llmbench.spec.huggingface import from_config

from ..oracles.transformers_meta import measure

BERT = {
    "hidden_size": 48,
    "intermediate_size": 80,
    "num_attention_heads": 4,
    "num_hidden_layers": 3,
    "max_position_embeddings": 64,
    "vocab_size": 99,
}
BART = {
    "d_model": 48,
    "encoder_layers": 3,
    "decoder_layers": 2,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 6,
    "encoder_ffn_dim": 80,
    "decoder_ffn_dim": 72,
    "max_position_embeddings": 64,
    "vocab_size": 99,
}
XLM = {"emb_dim": 48, "n_heads": 4, "n_layers": 3, "max_position_embeddings": 64, "vocab_size": 99}
PROTEIN = {**BERT, "pad_token_id": 1, "mask_token_id": 2}
NO_LIMITS = {key: value for key, value in BART.items() if key != "max_position_embeddings"}
LED = {**NO_LIMITS, "max_encoder_position_embeddings": 96, "max_decoder_position_embeddings": 32}
PROPHETNET = {
    "hidden_size": 48,
    "num_encoder_layers": 3,
    "num_decoder_layers": 2,
    "num_encoder_attention_heads": 4,
    "num_decoder_attention_heads": 6,
    "encoder_ffn_dim": 80,
    "decoder_ffn_dim": 72,
    "ngram": 3,
    "vocab_size": 99,
}
SIDE = {
    "hidden_size": 48,
    "intermediate_size": 80,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "vocab_size": 99,
    "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
}
T5GEMMA2 = {
    "encoder": {"model_type": "t5gemma2_encoder", "text_config": {"model_type": "t5gemma2_text", **SIDE}},
    "decoder": {"model_type": "t5gemma2_decoder", **SIDE, "num_key_value_heads": 4},
}

CONFIGS: list[tuple[str, dict[str, Any]]] = [
    ("gte", BERT),
    ("gte", {**BERT, "type_vocab_size": 0}),
    ("jina_embeddings_v3", BERT),
    ("jina_embeddings_v3", {**BERT, "tie_word_embeddings": False}),
    ("layoutlm", {**BERT, "max_2d_position_embeddings": 30}),
    ("tapas", {**BERT, "type_vocab_sizes": [3, 5]}),
    ("roc_bert", {**BERT, "shape_embed_dim": 10, "enable_pronunciation": False}),
    ("roc_bert", {**BERT, "concat_input": False, "shape_embed_dim": 48, "pronunciation_embed_dim": 48}),
    ("bert-generation", BERT),
    ("bert-generation", {**BERT, "tie_word_embeddings": False}),
    ("big_bird", {**BERT, "use_bias": False, "attention_type": "original_full"}),
    ("xlm", {**XLM, "n_langs": 5}),
    ("xlm", {**XLM, "n_langs": 5, "use_lang_emb": False, "causal": True}),
    ("flaubert", {**XLM, "pre_norm": True, "tie_word_embeddings": False}),
    ("xmod", {**BERT, "adapter_layer_norm": True, "adapter_reduction_factor": 3}),
    ("xmod", {**BERT, "pre_norm": True, "adapter_reduction_factor": 4}),
    ("longformer", {**BERT, "attention_window": [4, 6, 8]}),
    ("yoso", {**BERT, "conv_window": 5}),
    ("mra", BERT),
    ("nystromformer", {**BERT, "conv_kernel_size": 7}),
    ("fnet", {key: value for key, value in BERT.items() if key != "num_attention_heads"}),
    ("convbert", {**BERT, "embedding_size": 32, "conv_kernel_size": 5}),
    ("convbert", {**BERT, "embedding_size": 48, "head_ratio": 8}),
    ("esm", {**PROTEIN, "position_embedding_type": "rotary", "emb_layer_norm_before": True}),
    ("esm", PROTEIN),
    ("esmc", {**BERT, "attention_bias": True, "mlp_bias": True}),
    ("ultrabert", {**BERT, "prediction_head_size": 20, "attention_bias": True}),
    ("ultrabert", {**BERT, "num_key_value_heads": 2, "tie_word_embeddings": True}),
    ("xlnet", {"d_model": 48, "n_head": 4, "n_layer": 3, "d_inner": 80, "vocab_size": 99}),
    ("led", {**LED, "attention_window": [4, 6, 8]}),
    ("bigbird_pegasus", BART),
    ("bigbird_pegasus", {**BART, "use_bias": True}),
    ("pegasus_x", {**BART, "num_global_tokens": 5}),
    ("fsmt", {**BART, "src_vocab_size": 77, "tgt_vocab_size": 99}),
    ("prophetnet", PROPHETNET),
    ("t5gemma2", T5GEMMA2),
]


@pytest.mark.parametrize(("model_type", "values"), CONFIGS)
def test_transformers_counts_the_same(model_type: str, values: dict[str, Any]) -> None:
    config = {"model_type": model_type, **values}
    counted, truth = count_parameters(from_config(config, name="test")), measure(config)
    assert counted.total == truth.total
    assert counted.active_matmul == truth.active_matmul
    assert counted.buffers == sum(truth.persistent_buffers.values())


def test_a_tied_fsmt_has_one_table() -> None:
    """Encoder, decoder and head share it."""
    config = {"model_type": "fsmt", **BART, "src_vocab_size": 99, "tgt_vocab_size": 99, "tie_word_embeddings": True}
    assert count_parameters(from_config(config, name="test")).total == measure(config).total


def test_a_token_of_xmod_uses_the_adapter_of_its_language_only() -> None:
    one, three = (
        count_parameters(from_config({"model_type": "xmod", **BERT, "languages": names}, name="test"))
        for names in (["en_XX"], ["en_XX", "id_ID", "de_DE"])
    )
    truth = measure({"model_type": "xmod", **BERT, "languages": ["en_XX", "id_ID", "de_DE"]})
    assert three.total == truth.total > one.total
    assert three.active_matmul == one.active_matmul


def test_longformer_sees_half_of_its_window_on_each_side() -> None:
    """In a long text, each query sees 4 keys before it, 4 keys after it and its own key."""
    spec = from_config({"model_type": "longformer", **BERT, "attention_window": 8}, name="test")
    cores = [op for op in lower(spec, Workload.prefill(512)) if op.name.endswith("attention.core")]
    pairs = 512 * 9 - 2 * (1 + 2 + 3 + 4)
    assert {op.forward_flops for op in cores} == {2 * 2 * 48 * pairs}
