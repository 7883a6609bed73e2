"""Importers for A.X K1 and K2 by SK Telecom."""

from __future__ import annotations

from typing import Any

from msgspec.structs import replace

from llmbench.spec.huggingface.config import Config
from llmbench.spec.huggingface.families import family
from llmbench.spec.huggingface.families.common import (
    decoder,
    gated,
    latent_attention,
    matrix,
    mixture_layers,
    norm,
    prediction_modules,
)
from llmbench.spec.huggingface.families.deepseek import deepseek_ffn, indexed_attention
from llmbench.spec.huggingface.layer_lists import sparse_after_first
from llmbench.spec.huggingface.rotation import rope
from llmbench.spec.model import ModelSpec


@family("axk1", "AXK1")
def axk1(c: Config) -> ModelSpec:
    """A.X K1 is DeepSeek-V3 with an additional norm on the output of the experts."""
    mixer = latent_attention(c)
    sparse = sparse_after_first(c, 1)
    ffn = replace(deepseek_ffn(c), output_norm=True)
    layers = mixture_layers(mixer, sparse, ffn, gated(c, bias=False))
    return decoder(
        c,
        layers,
        norm=norm(c),
        positions=rope(c, head_dim=mixer.qk_rope_head_dim, interleaved=True),
        next_token_prediction=prediction_modules(c.count("num_nextn_predict_layers"), list(layers)),
    )


@family("axk2")
def axk2(c: Config) -> ModelSpec:
    """A.X K2 is DeepSeek-V3.2 with a gate on each norm and an output gate on attention.

    One matrix computes the queries and the output gate from two latents.
    """
    hidden, rank = c.size("hidden_size"), c.size("gated_norm_rank")
    mixer = indexed_attention(c)
    q_rank = mixer.q_lora_rank
    if q_rank is None:
        raise c.error("q_lora_rank", "must be a whole number of at least 1")
    heads, width = mixer.num_attention_heads, mixer.qk_head_dim + mixer.v_head_dim
    # The matrix has heads × width outputs and 2 × q_rank inputs. The spec already counts a query projection with
    # heads × qk_head_dim outputs and q_rank inputs. This extra weight counts the rest of the matrix.
    rest = matrix("attention.q_gate_proj", "attention", heads * (2 * width - mixer.qk_head_dim), q_rank)
    c.ignore("layer_types")

    def gate(name: str) -> tuple[Any, ...]:
        """Return the two low-rank matrices that compute the gate of the norm `name`."""
        return (
            matrix(f"{name}.gate_in", "norms", rank, hidden),
            matrix(f"{name}.gate_out", "norms", hidden, rank),
        )

    layers = mixture_layers(
        mixer,
        sparse_after_first(c, 1),
        deepseek_ffn(c),
        gated(c, bias=False),
        extra=(rest, *gate("mixer_norm")),
        sparse_extra=gate("ffn_norm"),
    )
    return decoder(c, layers, norm=norm(c), positions=rope(c, head_dim=mixer.qk_rope_head_dim, interleaved=True))
