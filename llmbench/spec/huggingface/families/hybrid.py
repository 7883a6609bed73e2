"""State-space models, linear attention, and hybrids of these with attention."""

from __future__ import annotations

import math
from typing import Any

from llmbench.spec.ffn import FFN, Activation, Router, SharedExperts
from llmbench.spec.huggingface.config import Config
from llmbench.spec.huggingface.families import family
from llmbench.spec.huggingface.families.mixture import TOPK_SOFTMAX
from llmbench.spec.huggingface.parts import (
    activation,
    attention,
    block,
    decoder,
    deepseek_router,
    dense,
    gated,
    head_dim_of,
    layer_types,
    moe,
    norm,
    rope,
)
from llmbench.spec.mixer import RGLRU, LightningAttention, Mamba, Mamba2, Mixer
from llmbench.spec.model import Embedding, Head, Layer, ModelSpec
from llmbench.spec.position import NoPositions


def silu_only(c: Config, key: str) -> None:
    """Convolution and gate of a state space have SiLU; another activation costs the same, but is not built."""
    _only(c, key, "silu")


def _only(c: Config, key: str, expected: Activation) -> None:
    """A mixer with a fixed activation; another costs the same, but is not built."""
    name = activation(c, key, default=expected)
    if name != expected:
        c.inexact(f"the activation `{name}` of the recurrent layers, which is counted as {expected}")


def time_step_limits(c: Config) -> tuple[float, float | None]:
    """The limits of Mamba-2's step of time; without bounds unless the config says so."""
    limits = c.get("time_step_limit")
    if limits is None:
        return 0.0, None
    if not isinstance(limits, (list, tuple)) or len(limits) != 2:
        raise c.error("time_step_limit", "must be two numbers")
    bounds = [_UNBOUNDED if limit == {"__float__": "Infinity"} else limit for limit in limits]
    if any(type(bound) not in (int, float) for bound in bounds):
        raise c.error("time_step_limit", "must be two numbers")
    low, high = (min(bound, _UNBOUNDED) for bound in bounds)
    if not 0 <= low <= high:
        raise c.error("time_step_limit", "must be two numbers that are not negative, the smaller first")
    return float(low), None if high == _UNBOUNDED else float(high)


_UNBOUNDED = 10**6
"""A limit that no step of time reaches; files say infinity, transformers 5 in a table of its own."""


@family("mamba", "falcon_mamba")
def mamba(c: Config) -> ModelSpec:
    """Mamba and Falcon-Mamba (which norms dt, B and C without weights): no attention, no feed-forward."""
    hidden = c.size("hidden_size")
    rank = c.get("time_step_rank")
    mixer = Mamba(
        intermediate_size=c.size("intermediate_size", c.size("expand", 2) * hidden),
        state_size=c.size("state_size"),
        conv_kernel=c.size("conv_kernel"),
        time_step_rank=rank if isinstance(rank, int) and rank > 0 else math.ceil(hidden / 16),
        conv_bias=c.flag("use_conv_bias", True),
        proj_bias=c.flag("use_bias"),
        inner_norms="plain" if c.model_type == "falcon_mamba" else "none",
        norm_eps=c.number("mixer_rms_eps", 1e-6) if c.model_type == "falcon_mamba" else None,
    )
    silu_only(c, "hidden_act")
    c.ignore(
        "n_layer",
        "d_model",
        "rms_norm",
        "expand",
        "mixer_rms_eps",
        "use_associative_scan",
        "intermediate_size",
    )
    return decoder(c, block(mixer, None), norm=norm(c))


@family("mamba2")
def mamba2(c: Config) -> ModelSpec:
    """Mamba-2."""
    shortest, longest = time_step_limits(c)
    mixer = Mamba2(
        num_heads=c.size("num_heads"),
        head_dim=c.size("head_dim"),
        state_size=c.size("state_size"),
        n_groups=c.size("n_groups"),
        conv_kernel=c.size("conv_kernel"),
        chunk_size=c.size("chunk_size", 256),
        conv_bias=c.flag("use_conv_bias", True),
        proj_bias=c.flag("use_bias"),
        time_step_min=shortest,
        time_step_max=longest,
    )
    silu_only(c, "hidden_act")
    c.ignore("expand", "time_step_rank", "rms_norm", "norm_before_gate")
    if mixer.intermediate_size != c.size("expand", 2) * c.size("hidden_size"):
        raise c.error("num_heads", "× head_dim must equal expand × hidden_size")
    return decoder(c, block(mixer, None), norm=norm(c))


@family("jamba")
def jamba(c: Config) -> ModelSpec:
    """Jamba: one attention layer without positions to seven of Mamba, experts in every other layer."""
    hidden = c.size("hidden_size")
    rank = c.get("mamba_dt_rank")
    ssm = Mamba(
        intermediate_size=c.size("mamba_expand") * hidden,
        state_size=c.size("mamba_d_state"),
        conv_kernel=c.size("mamba_d_conv"),
        time_step_rank=rank if isinstance(rank, int) and rank > 0 else math.ceil(hidden / 16),
        conv_bias=c.flag("mamba_conv_bias", True),
        proj_bias=c.flag("mamba_proj_bias"),
        inner_norms="weighted",
    )
    c.ignore("sliding_window", "use_associative_scan")
    silu_only(c, "hidden_act")
    full = attention(c)
    count = min(c.size("num_hidden_layers"), 10_001)
    period, offset = c.size("attn_layer_period"), c.count("attn_layer_offset")
    kinds = c.entries("layers_block_type", count) or c.entries("layer_types", count)
    expert_period, expert_offset = c.size("expert_layer_period"), c.count("expert_layer_offset")
    experts: FFN | None = None
    if c.size("num_experts") > 1:
        experts = moe(c, width="intermediate_size", router=Router())
    layers = []
    for index in range(count):
        attends = index % period == offset % period if kinds is None else "attention" in str(kinds[index])
        sparse = experts is not None and index % expert_period == expert_offset % expert_period
        mixer: Mixer = full if attends else ssm
        name = f"{'attention' if attends else 'mamba'}_{'moe' if sparse else 'dense'}"
        layers.append((name, block(mixer, experts if sparse else gated(c, bias=False))))
    return decoder(c, layers, norm=norm(c), positions=NoPositions())


@family("nemotron_h")
def nemotron_h(c: Config) -> ModelSpec:
    """Nemotron-H: every layer is one thing, Mamba-2 (M), attention (*), a two-matrix feed-forward (-) or
    experts (E)."""
    for old, new in (
        ("mamba_n_groups", "n_groups"),
        ("mamba_d_conv", "conv_kernel"),
        ("mamba_conv_bias", "use_conv_bias"),
        ("mamba_chunk_size", "chunk_size"),
    ):
        if old in c:
            c.put(new, c.get(old))
    count = c.get("num_hidden_layers")
    pattern = c.get("hybrid_override_pattern")
    kinds = c.entries("layers_block_type")
    letters = {"M": "mamba", "*": "attention", "-": "mlp", "E": "moe"}
    if kinds is None and isinstance(pattern, str):
        kinds = [letters.get(letter, letter) for letter in pattern]
    elif kinds is None:
        kinds = ["mamba", "moe", "attention", "mlp"]  # what the class takes where a config says nothing
    if not kinds:
        raise c.error("hybrid_override_pattern", "has no layers")
    if isinstance(count, int) and count != len(kinds) and "num_hidden_layers" in c:
        raise c.error("num_hidden_layers", f"is {count}, but the pattern has {len(kinds)} layers")
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
    )
    silu_only(c, "mamba_hidden_act")
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
        "mamba_ssm_cache_dtype",
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
        c.note("multi-token-prediction layers are not counted")
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
            raise c.error("hybrid_override_pattern", f"has an unknown layer kind {kind!r}")
    return _sized(c, layers, len(kinds))


def _sized(c: Config, layers: list[tuple[str, Layer]], count: int) -> ModelSpec:
    c.put("num_hidden_layers", count)
    # The class never ties, and has no biases on attention whatever `attention_bias` says.
    return decoder(c, layers, norm=norm(c), positions=NoPositions(), tie_word_embeddings=False)


def _nemotron_experts(c: Config) -> FFN:
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


@family("recurrent_gemma")
def recurrent_gemma(c: Config) -> ModelSpec:
    """RecurrentGemma (Griffin): two recurrent blocks to one local attention; `intermediate_size` counts both
    halves."""
    hidden = c.size("hidden_size")
    kinds = c.entries("block_types") or ["recurrent", "recurrent", "attention"]
    count = min(c.size("num_hidden_layers"), 10_001)
    local = attention(
        c,
        qkv_bias=c.flag("attention_bias"),
        output_bias=True,
        sliding_window=c.window("attention_window_size"),
    )
    lru = RGLRU(
        lru_width=c.size("lru_width", hidden),
        num_heads=c.size("num_attention_heads"),
        conv_kernel=c.size("conv1d_width"),
    )
    if lru.lru_width % lru.num_heads:
        raise c.error("lru_width", f"{lru.lru_width} is not a multiple of num_attention_heads {lru.num_heads}")
    ffn = gated(c, bias=True, width=c.size("intermediate_size") // 2)
    _only(c, "hidden_activation", "gelu_tanh")
    c.ignore("_block_types", "logits_soft_cap", "final_w_init_variance_scale")
    layers = []
    for index in range(count):
        attends = kinds[index % len(kinds)] == "attention"
        mixer: Mixer = local if attends else lru
        layers.append(("attention" if attends else "recurrent", block(mixer, ffn)))
    return decoder(
        c,
        layers,
        norm=norm(c, unit_offset=True),
        positions=rope(c, head_dim=local.head_dim, partial=0.5),
        embedding=Embedding(scale=_as_bfloat16(hidden**0.5)),
        head=Head(soft_cap=c.optional_number("logits_soft_cap")),
    )


def _as_bfloat16(x: float) -> float:
    """The nearest number with 8 significant bits: the class keeps its scale in bf16, whatever the model's format."""
    fraction, exponent = math.frexp(x)
    return math.ldexp(round(fraction * 256), exponent - 8)


@family("minimax", "minimax_text_01", "MiniMaxText01", "minimax_m1")
def minimax(c: Config) -> ModelSpec:
    """MiniMax-Text-01 and M1: seven lightning-attention layers to one of softmax attention, experts in all.
    The first files on the hub list the kinds of layers as zeros and ones in `attn_type_list`."""
    full = attention(c, sliding_window=c.window())
    linear = LightningAttention(
        num_attention_heads=full.num_attention_heads,
        head_dim=full.head_dim,
        block_size=c.size("block_size", 256),
    )
    count = min(c.size("num_hidden_layers"), 10_001)
    derived = ["full_attention" if (i + 1) % 2 else "linear_attention" for i in range(count)]
    if c.model_type != "minimax":
        softmax = c.entries("attn_type_list", count)
        if softmax is None:
            raise c.error("attn_type_list", f"is missing; `{c.model_type}` needs it")
        derived = ["full_attention" if kind == 1 else "linear_attention" for kind in softmax]
        if c.count("shared_intermediate_size"):
            c.doubt("shared_intermediate_size: a shared expert is not counted")
        c.ignore("shared_moe_mode")
    kinds = layer_types(c, derived)
    ffn = moe(c, experts="num_local_experts", width="intermediate_size", router=TOPK_SOFTMAX)
    if ffn.activation != "silu":
        c.inexact("MiniMax's linear attention has hidden_act too, and only SiLU is built")
    layers = []
    for kind in kinds:
        residual = _minimax_residual(c, kind)
        if kind == "linear_attention":
            layers.append(("linear", block(linear, ffn, **residual)))
        else:
            layers.append(("attention", block(full, ffn, **residual)))
    return decoder(c, layers, norm=norm(c), positions=rope(c, head_dim=full.head_dim))


def _minimax_residual(c: Config, kind: str) -> dict[str, Any]:
    """How a layer adds: what its norm gives times α, and the sublayer's output times β. The class in transformers
    always starts behind the norm; that on the hub where `postnorm` says so, and its factors have other names."""
    hub = c.model_type != "minimax"
    own = "linear_attention" if kind == "linear_attention" else "full_attention"
    own = own if hub else own.replace("attention", "attn")

    def factor(part: str, name: str) -> float:
        return c.number(f"layernorm_{part}_{name}" if hub else f"{part}_{name}_factor", 1.0)

    alpha, beta = (factor(own, name) for name in ("alpha", "beta"))
    if (alpha, beta) != (factor("mlp", "alpha"), factor("mlp", "beta")):
        c.inexact("sublayers of one layer that are added with different factors")
    behind = c.flag("postnorm") if hub else True
    return {"skip_scale": alpha, "residual_scale": beta, "residual_from_norm": behind}
