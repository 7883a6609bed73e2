"""Importer for BLOOM by BigScience."""

from __future__ import annotations

from llmbench.spec.huggingface.config import Config
from llmbench.spec.huggingface.families import family
from llmbench.spec.huggingface.families.common import attention, block, decoder, dense, norm
from llmbench.spec.model import Embedding, ModelSpec
from llmbench.spec.position import Alibi


@family("bloom")
def bloom(c: Config) -> ModelSpec:
    """BLOOM has ALiBi and a LayerNorm on the embedding. In its oldest configs, the key of hidden_size is `n_embed`."""
    c.rename(n_embed="hidden_size", num_attention_heads="n_head")
    hidden = c.size("hidden_size")
    mixer = attention(c, num_key_value_heads=c.size("num_attention_heads"), qkv_bias=True, output_bias=True)
    behind = c.flag("apply_residual_connection_post_layernorm")
    if c.flag("slow_but_exact") and hidden % c.size("pretraining_tp", 1):
        c.unbuildable(
            "slow_but_exact: transformers leaves out columns, because hidden_size is not divisible by pretraining_tp"
        )
    ffn = dense(c, bias=True, width=4 * hidden, keys=("hidden_act",), default="gelu_tanh")
    return decoder(
        c,
        block(mixer, ffn, residual_from_norm=behind),
        norm=norm(c, "layernorm"),
        positions=Alibi(),
        embedding=Embedding(norm=True),
    )
