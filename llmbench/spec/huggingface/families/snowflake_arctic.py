"""Importer for Snowflake's Arctic."""

from __future__ import annotations

from llmbench.spec.ffn import Gated, MoE
from llmbench.spec.huggingface.config import Config
from llmbench.spec.huggingface.families import family
from llmbench.spec.huggingface.families.common import (
    TOPK_SOFTMAX,
    activation,
    attention,
    decoder,
    mixture_layers,
    norm,
    vector,
)
from llmbench.spec.huggingface.layer_lists import num_layers
from llmbench.spec.huggingface.rotation import rope
from llmbench.spec.model import ModelSpec


@family("arctic")
def arctic(c: Config) -> ModelSpec:
    """Snowflake Arctic has 2 of 128 experts, and a dense feed-forward parallel to the experts.

    The dense feed-forward has its own norm. The width between its matrices is hidden_size.
    """
    hidden, every = c.size("hidden_size"), c.size("moe_layer_frequency", 1)
    mixer = attention(c, sliding_window=c.window())
    width, act = c.size("intermediate_size"), activation(c)
    residual = c.flag("use_residual", True) and c.flag("parallel_attn_mlp_res", True)
    if not residual:
        c.doubt("use_residual = False or parallel_attn_mlp_res = False is not understood; only True is supported")
    ffn = MoE(
        num_experts=c.size("num_local_experts"),
        num_experts_per_tok=c.size("num_experts_per_tok"),
        intermediate_size=width,
        activation=act,
        router=TOPK_SOFTMAX,
        beside=Gated(intermediate_size=hidden, activation=act) if residual else None,
    )
    c.ignore(
        """
        moe_eval_capacity_factor moe_train_capacity_factor moe_min_capacity moe_token_dropping
        enable_expert_tensor_parallelism enc_index num_experts_per_token max_sequence_length
        """
    )
    sparse = [(index + 1) % every == 0 for index in range(num_layers(c))]
    own_norm = (vector("ffn.residual_norm", "norms", hidden),) if residual else ()
    layers = mixture_layers(mixer, sparse, ffn, Gated(intermediate_size=width, activation=act), sparse_extra=own_norm)
    return decoder(c, layers, norm=norm(c), positions=rope(c, head_dim=mixer.head_dim))
