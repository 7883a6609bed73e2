"""Importers for OPT, XGLM and CWM by Meta. Llama is in llama.py, RoBERTa in bert.py. BART, M2M-100 and NLLB are in
bart.py."""

from __future__ import annotations

from llmbench.spec.huggingface.config import Config
from llmbench.spec.huggingface.families import family
from llmbench.spec.huggingface.families.common import attention, block, decoder, dense, norm
from llmbench.spec.huggingface.families.llama import llama_with_windows
from llmbench.spec.huggingface.layer_lists import num_layers
from llmbench.spec.huggingface.rotation import expect_stated_rotation
from llmbench.spec.model import Embedding, ModelSpec, Norm
from llmbench.spec.position import LearnedPositions, Positions, SinusoidalPositions


@family("opt")
def opt(c: Config) -> ModelSpec:
    """OPT has a table of learned positions. No token uses the first two rows of this table.

    OPT-350m has a narrow embedding with a projection to hidden_size, and norms after the residual sums.
    """
    bias = c.flag("enable_bias", True)
    hidden = c.size("hidden_size")
    mixer = attention(c, num_key_value_heads=c.size("num_attention_heads"), qkv_bias=bias, output_bias=bias)
    ffn = dense(c, bias=bias, width=c.size("ffn_dim"), keys=("activation_function",), default="relu")
    affine = c.flag("layer_norm_elementwise_affine", True)
    layer_norm = norm(c, "layernorm", weight=affine, bias=affine)
    pre = c.flag("do_layer_norm_before", True)
    size = c.size("word_embed_proj_dim", hidden)
    positions = LearnedPositions(num_positions=c.size("max_position_embeddings") + 2, offset=2)
    return decoder(
        c,
        block(mixer, ffn, "pre" if pre else "post"),
        norm=layer_norm,
        positions=positions,
        final_norm=pre and not c.flag("_remove_final_layer_norm"),
        embedding=Embedding(size=None if size == hidden else size, positions_after=size != hidden),
    )


@family("xglm")
def xglm(c: Config) -> ModelSpec:
    """XGLM is fairseq's decoder with sinusoidal positions."""
    positions = SinusoidalPositions(halves=True, to_end=True, offset=2)
    return fairseq_decoder(c, positions, width=c.size("ffn_dim"))


def fairseq_decoder(c: Config, positions: Positions, *, width: int) -> ModelSpec:
    """Return fairseq's decoder. It has norms before the sublayers, biases on all projections, and a scaled embedding.

    `width`: the width between the two matrices of a feed-forward.
    """
    heads = c.size("num_attention_heads")
    c.require("add_cross_attention", False)
    c.ignore("scale_embedding", "layer_norm_eps")
    c.size("max_position_embeddings")
    mixer = attention(c, num_key_value_heads=heads, qkv_bias=True, output_bias=True)
    return decoder(
        c,
        block(mixer, dense(c, bias=True, width=width, keys=("hidden_act", "activation_function"))),
        norm=Norm(kind="layernorm", bias=True, eps=1e-5),
        positions=positions,
        embedding=Embedding(scale=c.size("hidden_size") ** 0.5 if c.flag("scale_embedding", True) else 1.0),
    )


@family("cwm")
def cwm(c: Config) -> ModelSpec:
    """CWM has Llama's architecture. Three of four layers have a sliding window. The first layer has full attention."""
    window = c.window()
    expect_stated_rotation(c)
    kinds = ["sliding_attention" if index % 4 else "full_attention" for index in range(num_layers(c))]
    return llama_with_windows(c, kinds, window)
