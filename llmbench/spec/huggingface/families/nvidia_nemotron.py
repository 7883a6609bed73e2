"""Importers for Nemotron-4, Nemotron-H and models of NVIDIA's Puzzle architecture search, and for DeciLM by Deci."""

from __future__ import annotations

from typing import Any

from llmbench.errors import UnsupportedError
from llmbench.spec.ffn import FFN, SharedExperts
from llmbench.spec.huggingface.config import Config
from llmbench.spec.huggingface.families import family
from llmbench.spec.huggingface.families.common import (
    activation,
    attention,
    block,
    decoder,
    deepseek_router,
    dense,
    expect_silu,
    gated,
    head_dim_of,
    moe,
    norm,
    state_dtype,
)
from llmbench.spec.huggingface.layer_lists import layer_size
from llmbench.spec.huggingface.rotation import rope
from llmbench.spec.mixer import Attention, Mamba2
from llmbench.spec.model import Layer, ModelSpec
from llmbench.spec.position import NoPositions


@family("nemotron")
def nemotron(c: Config) -> ModelSpec:
    """Nemotron-4 and Minitron have squared ReLU. Their LayerNorms multiply by 1 + weight. RoPE rotates half of each
    head."""
    bias = c.flag("attention_bias")
    mixer = attention(c, qkv_bias=bias, output_bias=bias)
    c.require("kv_channels", mixer.head_dim)
    c.ignore("rope_percentage", "rotary_percentage", "rope_percent")
    ffn = dense(c, bias=c.flag("mlp_bias"), default="relu2")
    positions = rope(c, head_dim=mixer.head_dim, partial=0.5)
    return decoder(c, block(mixer, ffn), norm=norm(c, "layernorm", unit_offset=True), positions=positions)


@family("nemotron_h")
def nemotron_h(c: Config) -> ModelSpec:
    """Each layer of Nemotron-H is one sublayer: a mixer or a feed-forward.

    In the pattern, M means Mamba-2, * means attention, - means a feed-forward of two matrices, and E means a mixture of
    experts.
    """
    for alias, key in (
        ("mamba_n_groups", "n_groups"),
        ("mamba_d_conv", "conv_kernel"),
        ("mamba_conv_bias", "use_conv_bias"),
        ("mamba_chunk_size", "chunk_size"),
    ):
        if alias in c:
            c.put(key, c.get(alias))
    count = c.get("num_hidden_layers")
    pattern = c.get("hybrid_override_pattern")
    kinds = c.entries("layers_block_type")
    letters = {"M": "mamba", "*": "attention", "-": "mlp", "E": "moe"}
    if kinds is None and isinstance(pattern, str):
        kinds = [letters.get(letter, letter) for letter in pattern]
    elif kinds is None:
        kinds = ["mamba", "moe", "attention", "mlp"]  # transformers uses these four layers by default
    if not kinds:
        raise c.error("hybrid_override_pattern", "has no layers")
    if isinstance(count, int) and count != len(kinds) and "num_hidden_layers" in c:
        raise c.error("num_hidden_layers", f"is {count}, but hybrid_override_pattern has {len(kinds)} layers")
    ssm = Mamba2(
        num_heads=c.size("mamba_num_heads"),
        head_dim=c.size("mamba_head_dim"),
        state_size=c.size("ssm_state_size"),
        n_groups=c.size("n_groups"),
        conv_kernel=c.size("conv_kernel"),
        chunk_size=c.size("chunk_size", 128),
        conv_bias=c.flag("use_conv_bias", True),
        proj_bias=c.flag("use_bias"),
        time_step_min=c.number("time_step_min", 0.001),
        state_dtype=state_dtype(c, "mamba_ssm_cache_dtype"),
    )
    expect_silu(c, "mamba_hidden_act")
    c.ignore(
        "expand",
        "mamba_expand",
        "time_step_rank",
        "sliding_window",
        "norm_before_gate",
        "moe_latent_size",
        "mamba_proj_bias",
        "attention_bias",
        "moe_shared_expert_overlap",
        "mtp_layers_block_type",
        "mtp_hybrid_override_pattern",
        "num_nextn_predict_layers",
        "tie_word_embeddings",
        "n_shared_experts",
        "intermediate_size",
        "rope_theta",
        "partial_rotary_factor",
        "num_query_groups",
    )
    if c.count("num_nextn_predict_layers"):
        c.note("num_nextn_predict_layers: multi-token-prediction layers are not counted")
    head_dim = c.optional_size("attention_head_dim") or c.optional_size("head_dim")
    full = attention(c, head_dim=head_dim or head_dim_of(c))
    layers: list[tuple[str, Layer]] = []
    for kind in kinds:
        if kind in ("mamba", "mamba2", "linear_attention"):
            layers.append(("mamba", block(ssm, None)))
        elif kind in ("attention", "full_attention"):
            layers.append(("attention", block(full, None)))
        elif kind == "mlp":
            ffn = dense(c, bias=c.flag("mlp_bias"), keys=("mlp_hidden_act",), default="relu2")
            layers.append(("mlp", block(None, ffn)))
        elif kind == "moe":
            layers.append(("moe", block(None, _nemotron_experts(c))))
        else:
            raise c.error("hybrid_override_pattern", f"has the kind {kind!r}; known are {', '.join(letters)}")
    return _sized(c, layers, len(kinds))


def _sized(c: Config, layers: list[tuple[str, Layer]], count: int) -> ModelSpec:
    c.put("num_hidden_layers", count)
    # The head is never tied to the embedding. Attention never has biases, so `attention_bias` is not read.
    return decoder(c, layers, norm=norm(c), positions=NoPositions(), tie_word_embeddings=False)


def _nemotron_experts(c: Config) -> FFN:
    """Return Nemotron-H's experts. The width of their inputs and outputs can be smaller than hidden_size."""
    bias = c.flag("mlp_bias")
    if bias and c.optional_size("moe_latent_size"):
        c.doubt("mlp_bias = True: biases of the latent projections are not counted")
    shared_width = c.count("moe_shared_expert_intermediate_size")
    return moe(
        c,
        experts="n_routed_experts",
        gated=False,
        activation=activation(c, "mlp_hidden_act", default="relu2"),
        latent_size=c.optional_size("moe_latent_size"),
        router=deepseek_router(c),
        shared=SharedExperts(intermediate_size=shared_width, bias=bias) if shared_width else None,
    )


@family("deci", "nemotron-nas")
def deci(c: Config) -> ModelSpec:
    """DeciLM and the models of NVIDIA's Puzzle are variants of Llama whose layers differ from each other.

    The layers have different numbers of key-value heads and different feed-forward widths. A layer may also have no
    attention or no feed-forward.
    """
    count, heads = c.size("num_hidden_layers"), c.size("num_attention_heads")
    bias, mlp_bias = c.flag("attention_bias"), c.flag("mlp_bias")
    c.ignore("num_key_value_heads", "intermediate_size", "num_key_value_heads_per_layer")
    positions = rope(c, head_dim=head_dim_of(c))
    blocks = c.entries("block_configs", count, nested=True)
    layers: list[tuple[str, Layer]] = []
    if blocks is None:
        uniform = c.optional_size("num_key_value_heads") or heads
        for kv_heads in c.entries("num_key_value_heads_per_layer", count) or [uniform] * count:
            own_heads = attention(
                c,
                num_key_value_heads=layer_size(c, "num_key_value_heads_per_layer", kv_heads),
                qkv_bias=bias,
                output_bias=bias,
            )
            layers.append(("block", block(own_heads, gated(c, bias=mlp_bias))))
        return decoder(c, layers, norm=norm(c), positions=positions)
    for entry in blocks:
        attending, ffn = _part(c, entry, "attention"), _part(c, entry, "ffn")
        mixer: Attention | None = None
        if not attending.get("no_op"):
            group = attending.get("n_heads_in_group")
            kv_heads = (
                attending.get("num_key_value_heads")
                if group is None
                else heads // layer_size(c, "block_configs", group)
            )
            mixer = attention(
                c, num_key_value_heads=layer_size(c, "block_configs", kv_heads), qkv_bias=bias, output_bias=bias
            )
        feed_forward = None if ffn.get("no_op") else gated(c, bias=mlp_bias, width=_puzzle_width(c, ffn))
        layers.append(("block", block(mixer, feed_forward)))
    return decoder(c, layers, norm=norm(c), positions=positions)


_PLAIN_BLOCK = {
    "no_op", "replace_with_linear", "n_heads_in_group", "num_key_value_heads", "ffn_mult",
    "intermediate_size", "hidden_act", "unshifted_sink", "use_prefill_window_in_sink_attention",
}  # fmt: skip


def _part(c: Config, entry: Any, key: str) -> dict[str, Any]:
    """Return the description of one sublayer in an entry of block_configs. `key` is "attention" or "ffn".

    Raises SpecError if the description is missing, and UnsupportedError if one matrix replaces the sublayer.
    """
    part = entry.get(key) if isinstance(entry, dict) else None
    if not isinstance(part, dict):
        raise c.error("block_configs", f"must be a list of objects with the key `{key}`")
    if part.get("replace_with_linear"):
        raise UnsupportedError(
            "config block_configs: a sublayer replaced by one matrix (replace_with_linear) is not supported"
        )
    for name, value in part.items():
        if value and name not in _PLAIN_BLOCK:
            c.doubt(f"config key block_configs.{key}.{name} is not understood")
    return part


def _puzzle_width(c: Config, ffn: dict[str, Any]) -> int:
    """Return the width of a feed-forward: 2/3 × `ffn_mult` × hidden_size, rounded up to a multiple of 256.

    If there is no `ffn_mult`, the width is `intermediate_size`.
    """
    factor = ffn.get("ffn_mult")
    if factor is None:
        return layer_size(c, "block_configs", ffn.get("intermediate_size"))
    if isinstance(factor, bool) or not isinstance(factor, (int, float)) or not 0 < factor < 1000:
        raise c.error("block_configs", f"has ffn_mult {str(factor)[:40]}, which is not a number between 0 and 1000")
    return -(-int(2 * factor * c.size("hidden_size") / 3) // 256) * 256
