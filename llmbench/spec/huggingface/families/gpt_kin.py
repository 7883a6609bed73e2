"""More of GPT's line: OpenAI's first, and decoders that share its biases and two-matrix feed-forwards."""

from __future__ import annotations

from llmbench.spec.ffn import Dense
from llmbench.spec.huggingface.config import Config
from llmbench.spec.huggingface.families import family
from llmbench.spec.huggingface.parts import attention, block, decoder, dense, norm, rope
from llmbench.spec.mixer import QKNorm
from llmbench.spec.model import Embedding, ExtraWeight, Head, Layer, ModelSpec, Norm
from llmbench.spec.position import LearnedPositions, Positions, SinusoidalPositions


@family("openai-gpt")
def gpt1(c: Config) -> ModelSpec:
    """GPT-1: norms after each residual sum, and none at the end."""
    mixer = attention(c, num_key_value_heads=c.size("num_attention_heads"), qkv_bias=True, output_bias=True)
    ffn = dense(c, bias=True, width=4 * c.size("hidden_size"), keys=("afn",))
    if ffn.activation == "gelu":  # by that name, GPT-1 means the tanh form
        ffn = Dense(intermediate_size=ffn.intermediate_size, activation="gelu_tanh", bias=True)
    return decoder(
        c,
        block(mixer, ffn, "post"),
        norm=norm(c, "layernorm"),
        positions=LearnedPositions(num_positions=c.size("max_position_embeddings")),
        final_norm=False,
    )


@family("gpt_neo")
def gpt_neo(c: Config) -> ModelSpec:
    """GPT-Neo: every other layer local by `attention_types`; no biases on q, k and v, and unscaled scores."""
    count = min(c.size("num_hidden_layers"), 10_001)
    given = c.get("attention_layers")  # written beside attention_types, and what the layers are built from
    kinds: list[str] = []
    for item in c.entries("attention_types", nested=True) or [[["global", "local"], -(-count // 2)]]:
        if not (isinstance(item, list) and len(item) == 2 and isinstance(item[0], list) and type(item[1]) is int):
            raise c.error("attention_types", 'must be a list like [[["global", "local"], 12]]')
        kinds += [str(kind) for kind in item[0]] * min(item[1], -(-count // max(1, len(item[0]))))
        if len(kinds) >= count:
            break
    if len(kinds) < count:
        raise c.error("attention_types", f"names {len(kinds)} layers of {count}")
    if isinstance(given, list) and len(given) == count:
        kinds = [str(kind) for kind in given]
    ffn = dense(
        c,
        bias=True,
        width=c.size("intermediate_size", 4 * c.size("hidden_size")),
        keys=("activation_function",),
    )
    heads, window = c.size("num_attention_heads"), c.window("window_size")
    layers: list[tuple[str, Layer]] = []
    for kind in kinds[:count]:
        own = window if kind == "local" else None
        mixer = attention(c, num_key_value_heads=heads, output_bias=True, scale=1.0, sliding_window=own)
        layers.append(("local" if kind == "local" else "global", block(mixer, ffn)))
    return decoder(
        c,
        layers,
        norm=norm(c, "layernorm"),
        positions=LearnedPositions(num_positions=c.size("max_position_embeddings")),
    )


@family("gpt_neox_japanese")
def gpt_neox_japanese(c: Config) -> ModelSpec:
    """GPT-NeoX Japanese: no biases but one, on the output of the last layer's attention."""
    hidden, count = c.size("hidden_size"), min(c.size("num_hidden_layers"), 10_001)
    mixer = attention(c, num_key_value_heads=c.size("num_attention_heads"))
    width = c.size("intermediate_multiple_size", 4) * hidden
    layer = block(mixer, dense(c, bias=False, width=width))
    bias = ExtraWeight(name="attention.o_bias", shape=(hidden,), role="vector", component="attention")
    last = block(mixer, layer.ffn, extra=(bias,))
    return decoder(
        c,
        [("block", layer)] * (count - 1) + [("last", last)],
        norm=norm(c, "layernorm"),
        positions=rope(c, head_dim=mixer.head_dim),
    )


@family("biogpt", "xglm")
def fairseq(c: Config) -> ModelSpec:
    """BioGPT and XGLM: fairseq's decoder, pre-norm with biases; learned positions or sines."""
    heads = c.size("num_attention_heads")
    c.require("add_cross_attention", False)
    c.ignore("scale_embedding", "layer_norm_eps")
    mixer = attention(c, num_key_value_heads=heads, qkv_bias=True, output_bias=True)
    hidden, positions = c.size("hidden_size"), c.size("max_position_embeddings")
    learned = c.model_type == "biogpt"
    width = c.size("intermediate_size") if learned else c.size("ffn_dim")
    table: Positions = LearnedPositions(num_positions=positions + 2, offset=2)
    return decoder(
        c,
        block(mixer, dense(c, bias=True, width=width, keys=("hidden_act", "activation_function"))),
        norm=Norm(kind="layernorm", bias=True, eps=1e-5),
        positions=table if learned else SinusoidalPositions(halves=True, to_end=True, offset=2),
        embedding=Embedding(scale=hidden**0.5 if c.flag("scale_embedding", True) else 1.0),
    )


@family("ctrl")
def ctrl(c: Config) -> ModelSpec:
    """CTRL: sines, pre-norm, biases everywhere, the head's too."""
    mixer = attention(c, num_key_value_heads=c.size("num_attention_heads"), qkv_bias=True, output_bias=True)
    if c.number("layer_norm_epsilon", 1e-6) != 1e-6:
        c.inexact("layer_norm_epsilon, which CTRL's class reads for the last norm alone")
    return decoder(
        c,
        block(mixer, dense(c, bias=True, width=c.size("dff"), keys=(), default="relu")),
        norm=Norm(kind="layernorm", bias=True, eps=1e-6),
        positions=SinusoidalPositions(halves=True),
        embedding=Embedding(scale=c.size("hidden_size") ** 0.5),
        head=Head(bias=True),
    )


@family("persimmon", "fuyu")
def persimmon(c: Config) -> ModelSpec:
    """Persimmon, and Fuyu's text part in its flat config: squared ReLU, LayerNorms, biases, qk-norm."""
    if c.model_type == "fuyu":
        c.note("multimodal config `fuyu`: the figures are of its text part")
        c.ignore("image_size", "patch_size", "num_channels")
    flat = {
        "hidden_size": 4096, "intermediate_size": 16384, "num_hidden_layers": 36, "num_attention_heads": 64,
        "vocab_size": 262144, "max_position_embeddings": 16384,
    }  # fmt: skip
    for key, value in flat.items():
        if c.get(key) is None:
            c.put(key, value)
    c.require("num_key_value_heads", c.size("num_attention_heads"))
    qk_norm = QKNorm(norm="layernorm", bias=True) if c.flag("qk_layernorm", True) else None
    mixer = attention(
        c, num_key_value_heads=c.size("num_attention_heads"), qkv_bias=True, output_bias=True, qk_norm=qk_norm
    )
    return decoder(
        c,
        block(mixer, dense(c, bias=True, default="relu2")),
        norm=norm(c, "layernorm"),
        positions=rope(c, head_dim=mixer.head_dim, partial=0.5),
    )
