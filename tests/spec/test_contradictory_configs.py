"""Configs whose keys contradict each other: the spec follows the class in transformers, or the config is refused."""

from __future__ import annotations

from typing import Any

import pytest
import transformers

from llmbench.errors import SpecError
from llmbench.sizing.params import count_parameters
from llmbench.spec.huggingface import from_config, supported_model_types
from llmbench.spec.huggingface.facts import facts

from ..oracles.transformers_meta import measure

T5 = {"d_model": 32, "d_kv": 8, "num_heads": 4, "num_layers": 4, "d_ff": 48, "vocab_size": 96}
SWITCH = {**T5, "model_type": "switch_transformers", "num_experts": 4}


@pytest.mark.parametrize("model_type", ["t5", "mt5", "umt5", "longt5", "switch_transformers"])
@pytest.mark.parametrize(
    "keys",
    [
        {"feed_forward_proj": "relu", "is_gated_act": True},
        {"feed_forward_proj": "gated-gelu", "is_gated_act": False},
        {"feed_forward_proj": "gated-silu"},
    ],
    ids=str,
)
def test_is_gated_act_has_precedence_over_feed_forward_proj(model_type: str, keys: dict[str, Any]) -> None:
    config = {**T5, "model_type": model_type, **keys}
    assert count_parameters(from_config(config, name="x")).total == measure(config).total


def test_dense_act_fn_has_precedence_over_feed_forward_proj() -> None:
    config = {**T5, "model_type": "t5", "feed_forward_proj": "gated-gelu", "dense_act_fn": "silu"}
    assert from_config(config, name="x").layers["block"].ffn.activation == "silu"  # type: ignore[union-attr]


@pytest.mark.parametrize("projection", ["a-b", "gated-a-b"])
def test_a_feed_forward_proj_that_transformers_refuses(projection: str) -> None:
    with pytest.raises(SpecError, match="feed_forward_proj"):
        from_config({**T5, "model_type": "t5", "feed_forward_proj": projection}, name="x")


@pytest.mark.parametrize(
    "keys",
    [
        {"encoder_sparse_step": 1, "decoder_sparse_step": 3},
        {"num_sparse_encoder_layers": 1, "encoder_sparse_step": 2},
        {"num_sparse_decoder_layers": 1, "decoder_sparse_step": 0},
        {"num_sparse_encoder_layers": 0, "num_sparse_decoder_layers": 9},
        {"num_sparse_encoder_layers": 3, "num_sparse_decoder_layers": 2},
    ],
    ids=str,
)
def test_switch_follows_the_step_between_layers_with_experts(keys: dict[str, Any]) -> None:
    config = {**SWITCH, **keys}
    assert count_parameters(from_config(config, name="x")).total == measure(config).total


def test_a_class_that_never_ties_the_head_gives_an_untied_spec() -> None:
    classes = {model_type: facts().get(model_type, {}).get("class") for model_type in supported_model_types()}
    never_tied = {
        model_type
        for model_type, name in classes.items()
        if name is not None and hasattr(transformers, name) and not getattr(transformers, name)._tied_weights_keys
    }
    assert "kimi_linear" in never_tied
    for model_type in never_tied - {"fsmt"}:  # the class inside FSMT's ties the head
        spec = from_config({"model_type": model_type, "tie_word_embeddings": True}, name="x")
        assert not spec.tie_word_embeddings, model_type
