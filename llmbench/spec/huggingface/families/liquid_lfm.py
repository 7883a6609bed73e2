"""Importers for LFM2 and LFM3 by Liquid AI."""

from __future__ import annotations

from llmbench.spec.ffn import Router
from llmbench.spec.huggingface.config import Config
from llmbench.spec.huggingface.families import family
from llmbench.spec.huggingface.families.common import attention, block, decoder, gated, moe, norm
from llmbench.spec.huggingface.layer_lists import layer_types, num_layers
from llmbench.spec.huggingface.rotation import rope
from llmbench.spec.mixer import Mixer, QKNorm, ShortConv
from llmbench.spec.model import Layer, ModelSpec, Placement


@family("lfm2")
def lfm2(c: Config) -> ModelSpec:
    """LFM2 has attention in the layers `full_attn_idxs`, and short convolutions in the other layers.

    If `block_auto_adjust_ff_dim` is true, the width of the feed-forwards is 2/3 of the stated width, times
    `block_ffn_dim_multiplier`, rounded up to a multiple of `block_multiple_of`.
    """
    full = attention(c, qk_norm=QKNorm())
    count = num_layers(c)
    attending = c.entries("full_attn_idxs")
    kinds = layer_types(c, ["full_attention" if attending is None or i in attending else "conv" for i in range(count)])
    width = c.size("block_ff_dim" if "block_ff_dim" in c else "intermediate_size")
    multiple, multiplier = c.size("block_multiple_of"), c.optional_number("block_ffn_dim_multiplier")
    if c.flag("block_auto_adjust_ff_dim"):
        width = int(2 * width / 3)
        if multiplier is not None:
            width = multiple * -(-int(multiplier * width) // multiple)
    if width < 1:
        raise c.error("intermediate_size", "is too small: two thirds of it, times block_ffn_dim_multiplier, is below 1")
    c.ignore(
        "block_dim",
        "block_mlp_init_scale",
        "block_norm_eps",
        "block_out_init_scale",
        "block_use_swiglu",
        "block_use_xavier_init",
        "conv_dim",
        "conv_dim_out",
        "conv_use_xavier_init",
        "num_heads",
        "intermediate_size",
        "theta",
        "tie_word_embeddings",
        "full_attn_idxs",
        "use_pos_enc",
    )
    for key in ("conv_dim", "conv_dim_out", "block_dim"):
        c.require(key, c.size("hidden_size"))
    ffn = gated(c, bias=False, width=width)
    conv = _conv(c)
    layers = [("conv", block(conv, ffn)) if kind == "conv" else ("attention", block(full, ffn)) for kind in kinds]
    positions = rope(c, head_dim=full.head_dim)
    return decoder(c, layers, norm=norm(c), positions=positions, tie_word_embeddings=_lfm_ties(c))


@family("lfm2_moe")
def lfm2_moe(c: Config) -> ModelSpec:
    """LFM2-MoE is LFM2 with experts. The first `num_dense_layers` layers are dense.

    The load-balancing bias of the router is a buffer.
    """
    full = attention(c, qk_norm=QKNorm())
    count = num_layers(c)
    kinds = c.entries("layer_types", count)
    if kinds is None:
        raise c.error("layer_types", "is missing; `lfm2_moe` needs it")
    first = c.count("num_dense_layers")
    router = Router(
        scores="sigmoid",
        correction="buffer" if c.flag("use_expert_bias") else None,
        normalize=c.flag("norm_topk_prob"),
        scale=c.number("routed_scaling_factor", 1.0),
    )
    experts = moe(c, router=router) if first < count else None
    c.ignore("theta", "tie_word_embeddings", "num_heads")
    conv = _conv(c)
    layers: list[tuple[str, Layer]] = []
    for index, kind in enumerate(kinds):
        ffn = experts if index >= first and experts is not None else gated(c, bias=False)
        mixer: Mixer = conv if kind == "conv" else full
        name = "conv" if kind == "conv" else "attention"
        layers.append((name if index >= first else f"{name}_dense", block(mixer, ffn)))
    positions = rope(c, head_dim=full.head_dim)
    return decoder(c, layers, norm=norm(c), positions=positions, tie_word_embeddings=_lfm_ties(c))


@family("lfm3")
def lfm3(c: Config) -> ModelSpec:
    """LFM3 has layers with short convolutions, with sliding-window attention and with full attention.

    Attention has an output gate per head. Norms stand before and after each sublayer.
    """
    bias = c.flag("attention_bias")
    count = num_layers(c)
    derived = [
        "full_attention" if i % 4 == 2 else "sliding_attention" if i % 4 == 0 and i else "conv" for i in range(count)
    ]
    kinds = layer_types(c, derived)
    placement: Placement = "sandwich" if c.flag("use_sandwich_norm", True) else "pre"
    window = c.window()
    ffn = gated(c, bias=False)
    head_dim = c.size("head_dim")

    def attends(kind: str) -> Mixer:
        """Return the attention of the layer type `kind`."""
        return attention(
            c,
            qkv_bias=bias,
            output_bias=bias,
            qk_norm=QKNorm(),
            output_gate="headwise" if c.flag("use_attention_gate", True) else None,
            sliding_window=window if kind == "sliding_attention" else None,
            positions=rope(c, head_dim=head_dim, layer_type=kind),
        )

    mixers = {kind: _conv(c) if kind == "conv" else attends(kind) for kind in dict.fromkeys(kinds)}
    names = {"conv": "conv", "sliding_attention": "local"}
    layers = [(names.get(kind, "global"), block(mixers[kind], ffn, placement)) for kind in kinds]
    return decoder(c, layers, norm=norm(c), positions=rope(c, head_dim=head_dim))


def _conv(c: Config) -> ShortConv:
    """Return LFM's gated short convolution."""
    return ShortConv(width=c.size("hidden_size"), conv_kernel=c.size("conv_L_cache"), bias=c.flag("conv_bias"))


def _lfm_ties(c: Config) -> bool:
    """Return whether head and embedding are tied. The key `tie_embedding` has precedence over `tie_word_embeddings`."""
    return c.flag("tie_embedding" if "tie_embedding" in c else "tie_word_embeddings")
