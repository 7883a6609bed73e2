"""The parts of Hugging Face configs: each function writes a part of a spec under the standard names of keys.

`common` writes the keys that most classes declare (`defaults.json` lists those of each class). The functions after it
write the keys that single dense families have. `huggingface_forms` has the others and joins them.
"""

from __future__ import annotations

from functools import cached_property
from typing import Any, TypeVar

from llmbench.spec.ffn import Dense, Gated, MoE
from llmbench.spec.mixer import Attention, GatedDeltaNet, SingleMixer, branches
from llmbench.spec.model import Layer, ModelSpec
from llmbench.spec.position import Alibi, Positions, Rope, RopeScaling

Keys = dict[str, Any]
T = TypeVar("T")

_EPS = ("rms_norm_eps", "layer_norm_eps", "layer_norm_epsilon", "norm_eps", "norm_epsilon")
_ACTIVATION = ("hidden_act", "hidden_activation", "activation_function", "activation", "mlp_hidden_act")
_ACTIVATION_NAMES = {"gelu_tanh": "gelu_pytorch_tanh", "swiglu_oai": "silu"}


class View:
    """A spec with the keys of its class, and its parts by kind."""

    def __init__(self, spec: ModelSpec, declared: Keys, undeclared: Keys) -> None:
        self.spec = spec
        self.declared = declared
        self.undeclared = undeclared
        self.layers = [spec.layers[name] for name in spec.order]

    def mixer(self, kind: type[T]) -> T:
        """The first mixer of this type; AttributeError where there is none."""
        for layer in self.layers:
            for mixer in branches(layer.mixer):
                if isinstance(mixer, kind):
                    return mixer
        raise AttributeError(f"no {kind.__name__}")

    @cached_property
    def attention(self) -> Attention:
        """The first attention without a window, else the first."""
        attentions = [m for layer in self.layers for m in branches(layer.mixer) if isinstance(m, Attention)]
        return next((a for a in attentions if a.span is None), None) or self.mixer(Attention)

    @property
    def window(self) -> int | None:
        """The first window."""
        mixers = [m for layer in self.layers for m in branches(layer.mixer) if isinstance(m, Attention)]
        return next((m.sliding_window for m in mixers if m.sliding_window is not None), None)

    @property
    def positions(self) -> Positions:
        """The model's positions."""
        return self.spec.positions

    @cached_property
    def ffn(self) -> Dense | Gated | None:
        """The first feed-forward without experts, or None."""
        return next((f for layer in self.layers if isinstance(f := layer.ffn, (Dense, Gated))), None)

    @property
    def dense(self) -> Dense | Gated:
        """The first feed-forward without experts; AttributeError where there is none."""
        if self.ffn is None:
            raise AttributeError("no dense feed-forward")
        return self.ffn

    @cached_property
    def experts(self) -> MoE:
        """The first feed-forward with experts; AttributeError where there is none."""
        for layer in self.layers:
            if isinstance(layer.ffn, MoE):
                return layer.ffn
        raise AttributeError("no experts")

    @property
    def sparse(self) -> list[int]:
        """The indices of layers with experts."""
        return [index for index, layer in enumerate(self.layers) if isinstance(layer.ffn, MoE)]

    @property
    def first(self) -> Layer:
        """The first layer."""
        return self.layers[0]


def common(v: View) -> Keys:
    """Sizes, heads, windows, rotation, activation and biases, under the keys that the class declares."""
    spec = v.spec
    keys: Keys = {
        "vocab_size": spec.vocab_size,
        "hidden_size": spec.hidden_size,
        "num_hidden_layers": len(v.layers),
        "tie_word_embeddings": spec.tie_word_embeddings,
    }
    if spec.max_position_embeddings is not None:
        keys["max_position_embeddings"] = spec.max_position_embeddings
    keys |= {eps: spec.norm.eps for eps in _EPS if eps in v.declared}
    activations = [layer.ffn.activation for layer in v.layers if layer.ffn is not None]
    if activations:
        name = _ACTIVATION_NAMES.get(activations[0], activations[0])
        keys |= {key: name for key in _ACTIVATION if key in v.declared}
    if v.ffn is not None and "mlp_bias" in v.declared:
        keys["mlp_bias"] = v.ffn.bias
    mixers = [mixer for layer in v.layers for mixer in branches(layer.mixer)]
    if any(isinstance(mixer, Attention) for mixer in mixers):
        keys |= _heads(v)
    if isinstance(spec.positions, Rope):
        keys |= _rope(v, spec.positions)
    kinds = [_layer_type(layer) for layer in v.layers]
    if "layer_types" in v.declared and set(kinds) != {"full_attention"}:
        keys["layer_types"] = kinds
    return keys


def _heads(v: View) -> Keys:
    a = v.attention
    keys: Keys = {"num_attention_heads": a.num_attention_heads}
    declared = {
        "num_key_value_heads": a.num_key_value_heads,
        "head_dim": a.head_dim,
        "attention_bias": a.qkv_bias,
        "sliding_window": v.window,
    }
    keys |= {key: value for key, value in declared.items() if key in v.declared}
    if a.head_dim * a.num_attention_heads != v.spec.hidden_size:
        keys["head_dim"] = a.head_dim
    if "use_sliding_window" in v.declared:
        keys["use_sliding_window"] = v.window is not None
    return keys


def _layer_type(layer: Layer) -> str:
    mixer: SingleMixer | None = next(iter(branches(layer.mixer)), None)
    if isinstance(mixer, GatedDeltaNet):
        return "linear_attention"
    if isinstance(mixer, Attention) and mixer.sliding_window is not None:
        return "sliding_attention"
    if isinstance(mixer, Attention) and mixer.attention_chunk_size is not None:
        return "chunked_attention"
    return "full_attention"


def _rope(v: View, rope: Rope) -> Keys:
    keys: Keys = {"rope_theta": rope.theta}
    if rope.scaling is not None:
        keys["rope_scaling"] = _scaling(rope.scaling)
        if "original_max_position_embeddings" in v.declared and rope.scaling.original_max_position_embeddings:
            keys["original_max_position_embeddings"] = rope.scaling.original_max_position_embeddings
    if rope.rotary_dim is not None:
        if v.spec.family in ("gptj", "minimax_m2"):
            keys["rotary_dim"] = rope.rotary_dim
        else:
            keys["partial_rotary_factor"] = rope.rotary_dim / v.attention.head_dim
    elif "partial_rotary_factor" in v.undeclared:
        keys["partial_rotary_factor"] = 1.0
    return keys


def _scaling(scaling: RopeScaling) -> Keys:
    keys: Keys = {"rope_type": scaling.kind}
    for name in scaling.__struct_fields__:
        value = getattr(scaling, name)
        if name not in ("kind", "truncate") and value is not None and value != ():
            keys[name] = list(value) if isinstance(value, tuple) else value
    if not scaling.truncate:
        keys["truncate"] = False
    if scaling.kind == "longrope" and scaling.factor == 1.0:
        del keys["factor"]  # it follows from the two context lengths
    return keys


def width(v: View) -> Keys:
    """The feed-forward's width."""
    return {"intermediate_size": v.dense.intermediate_size}


def inner_width(v: View) -> Keys:
    """GPT-2's width of the feed-forward: null for four times the hidden size."""
    inner = v.dense.intermediate_size
    return {"n_inner": None if inner == 4 * v.spec.hidden_size else inner}


def multi_query(v: View) -> Keys:
    return {"multi_query": v.attention.num_key_value_heads == 1}


def parallel_residual(v: View) -> Keys:
    return {"use_parallel_residual": v.first.placement in ("parallel", "parallel_two")}


def neox_rope(v: View) -> Keys:
    """GPT-NeoX's older names of the rotation's base and part."""
    rope = v.positions
    assert isinstance(rope, Rope)
    rotated = v.attention.head_dim if rope.rotary_dim is None else rope.rotary_dim
    return {"rotary_emb_base": rope.theta, "rotary_pct": rotated / v.attention.head_dim}


def stablelm(v: View) -> Keys:
    return {"use_qkv_bias": v.attention.qkv_bias, "qk_layernorm": v.attention.qk_norm is not None}


def phi(v: View) -> Keys:
    return {"qk_layernorm": v.attention.qk_norm is not None}


def starcoder2(v: View) -> Keys:
    return {"use_bias": v.dense.bias}


def cohere(v: View) -> Keys:
    return {"logit_scale": v.spec.head.scale, "use_qk_norm": v.attention.qk_norm is not None}


def granite(v: View) -> Keys:
    return {
        "attention_multiplier": v.attention.scale,
        "residual_multiplier": v.first.residual_scale,
        "embedding_multiplier": v.spec.embedding.scale,
        "logits_scaling": 1 / v.spec.head.scale,
    }


def gemma(v: View) -> Keys:
    """Gemma's soft caps, the scalar of its score's scale, and the rotation base of local layers."""
    a = v.attention
    keys: Keys = {"attn_logit_softcapping": a.logit_soft_cap, "final_logit_softcapping": v.spec.head.soft_cap}
    if a.scale is not None:
        scalar = a.scale**-2
        keys["query_pre_attn_scalar"] = round(scalar) if round(scalar) ** -0.5 == a.scale else scalar
    for layer in v.layers:
        if isinstance(layer.mixer, Attention) and isinstance(layer.mixer.positions, Rope):
            keys["rope_local_base_freq"] = layer.mixer.positions.theta
    return keys


def opt(v: View) -> Keys:
    norm = v.spec.norm
    return {
        "ffn_dim": v.dense.intermediate_size,
        "enable_bias": v.attention.qkv_bias,
        "layer_norm_elementwise_affine": norm.weight,
        "do_layer_norm_before": v.first.placement == "pre",
        "word_embed_proj_dim": v.spec.embedding.size or v.spec.hidden_size,
        "_remove_final_layer_norm": v.first.placement == "pre" and not v.spec.final_norm,
    }


def mpt(v: View) -> Keys:
    a = v.attention
    inner: Keys = {"alibi": isinstance(v.positions, Alibi)}
    if a.num_key_value_heads != a.num_attention_heads:
        inner["kv_n_heads"] = a.num_key_value_heads
    inner |= {"clip_qkv": a.clip_qkv, "softmax_scale": a.scale}
    ratio = v.dense.intermediate_size // v.spec.hidden_size
    return {"attn_config": inner, "expansion_ratio": ratio, "no_bias": not v.dense.bias}


def falcon(v: View) -> Keys:
    a, placement = v.attention, v.first.placement
    new = placement == "parallel_two" or a.num_key_value_heads not in (1, a.num_attention_heads)
    return {
        "new_decoder_architecture": new,
        "num_kv_heads": a.num_key_value_heads if new else None,
        "num_ln_in_parallel_attn": 1 if new and placement == "parallel" else None,
        "multi_query": a.num_key_value_heads == 1,
        "parallel_attn": placement != "pre",
        "bias": a.qkv_bias,
        "alibi": isinstance(v.positions, Alibi),
        "ffn_hidden_size": v.dense.intermediate_size,
    }


def bert(v: View) -> Keys:
    return {"type_vocab_size": v.spec.embedding.token_types}
