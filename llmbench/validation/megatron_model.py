"""The model of a run of Megatron-LM, from the columns of a row.

A setting that a row leaves out has the default of Megatron's command line (see `megatron.py`).
"""

from __future__ import annotations

from typing import Literal

from llmbench.spec.ffn import FFN, Dense, Gated, MoE, Router, SharedExperts
from llmbench.spec.mixer import Attention, LatentAttention, Mamba2, QKNorm
from llmbench.spec.model import Layer, ModelSpec, NextTokenPrediction, Norm
from llmbench.spec.override import override
from llmbench.spec.position import LearnedPositions, NoPositions, Positions, Rope
from llmbench.validation.rows import RefusedError, Row, first_known

__all__ = ["capacity", "model_of", "mtp_modules"]

_NORMS: dict[str, Norm] = {
    "": Norm(kind="layernorm", bias=True),
    "LayerNorm": Norm(kind="layernorm", bias=True),
    "RMSNorm": Norm(kind="rmsnorm"),
}
_ACTIVATIONS: dict[str, Literal["gelu_tanh", "silu", "relu2"]] = {
    "": "gelu_tanh",
    "gelu": "gelu_tanh",
    "swiglu": "silu",
    "squared_relu": "relu2",
}


def model_of(row: Row) -> ModelSpec:
    """Return the spec of the model of a row."""
    layers, mtp = row.size("layers"), mtp_modules(row)
    dense = _layer(row, _feed_forward(row))
    if row.text("hybrid_pattern"):
        kinds, pattern = _hybrid(row)
    elif not row.count("experts"):
        kinds, pattern = {"block": dense}, f"{layers}*block"
    else:
        routed = first_known(row.count("moe_layers"), layers)
        if not routed <= layers:
            raise RefusedError(f"column `moe_layers`: {routed} is more than the {layers} layers")
        kinds = {"dense": dense, "moe": _layer(row, _mixture(row))}
        kinds = kinds if routed < layers else {"moe": kinds["moe"]}
        pattern = f"{layers - routed}*dense {routed}*moe" if routed < layers else f"{layers}*moe"
    spec = ModelSpec(
        name=row.text("id") or "run",
        source="a file",
        pattern=pattern,
        layers=kinds,
        vocab_size=_vocabulary(row),
        hidden_size=row.size("hidden"),
        tie_word_embeddings=first_known(row.flag("tied"), True),
        positions=_positions(row),
        norm=row.choice("norm", _NORMS),
        next_token_prediction=NextTokenPrediction(count=mtp, layer=next(reversed(kinds))) if mtp else None,
    )
    return override(spec, {"source": "columns of the file"})  # it checks every field


def _at_most(row: Row, column: str, most: int) -> int:
    """Return the whole number of a cell. Raises RefusedError if it is more than `most`."""
    value = row.size(column)
    if value > most:
        raise RefusedError(f"column `{column}`: {value} is more than {most}")
    return value


_KINDS = {"M": "mamba", "*": "attention", "-": "dense", "E": "moe"}
"""The kinds of layers that a letter of --hybrid-override-pattern stands for."""


def _hybrid(row: Row) -> tuple[dict[str, Layer], str]:
    """Return the kinds of layers of a hybrid model, and their pattern.

    The columns do not give the widths of Mamba layers, so they are Megatron's defaults: inner width 2 × hidden, heads
    of 64, a state of 128, 8 groups.
    """
    letters = row.text("hybrid_pattern").partition("/")[0]
    unknown = set(letters) - set(_KINDS)
    if unknown:
        raise RefusedError(f"column `hybrid_pattern`: unknown letters {' '.join(sorted(unknown))}")
    mamba = Mamba2(num_heads=2 * row.size("hidden") // 64, head_dim=64, state_size=128, n_groups=8, conv_kernel=4)
    attention = _layer(row, _feed_forward(row)).mixer
    made = {
        "mamba": lambda: Layer(mixer=mamba, ffn=None),
        "attention": lambda: Layer(mixer=attention, ffn=None),
        "dense": lambda: Layer(mixer=None, ffn=_feed_forward(row)),
        "moe": lambda: Layer(mixer=None, ffn=_mixture(row)),
    }
    names = [_KINDS[letter] for letter in letters]
    return {name: made[name]() for name in dict.fromkeys(names)}, " ".join(f"1*{name}" for name in names)


def mtp_modules(row: Row) -> int:
    """Return the number of multi-token-prediction modules."""
    return _at_most(row, "mtp", 16) if row.count("mtp") else 0


def _vocabulary(row: Row) -> int:
    """Return the rows of the embedding. Megatron pads the vocabulary to a multiple of 128 × tp."""
    padded = row.count("vocab_padded")
    if padded:
        return padded
    multiple = 128 * row.size("tp")
    return -(-row.size("vocab") // multiple) * multiple


def _positions(row: Row) -> Positions:
    rope: Positions = Rope()
    learned: Positions = LearnedPositions(num_positions=first_known(row.count("max_positions"), row.size("seq_len")))
    return row.choice(
        "position",
        {
            "": learned,
            "learned_absolute": learned,
            "not passed": learned,
            "rope": rope,
            "rope (MLA)": rope,
            "none": NoPositions(),
        },
    )


def _layer(row: Row, ffn: FFN) -> Layer:
    heads = row.size("heads")
    norm: Literal["rmsnorm", "layernorm"] = row.choice("norm", _NORMS).kind
    if row.count("kv_lora"):
        latent = LatentAttention(
            num_attention_heads=heads,
            q_lora_rank=row.count("q_lora") or None,
            kv_lora_rank=row.size("kv_lora"),
            qk_nope_head_dim=row.size("qk_head_dim"),
            qk_rope_head_dim=row.size("rope_head_dim"),
            v_head_dim=row.size("v_head_dim"),
            latent_norms=first_known(row.flag("qk_norm"), False),
        )
        return Layer(mixer=latent, ffn=ffn)
    attention = Attention(
        num_attention_heads=heads,
        num_key_value_heads=first_known(row.count("query_groups"), heads),
        head_dim=row.size("head_dim", row.size("hidden") // heads or None),
        qkv_bias=first_known(row.flag("qkv_bias"), row.flag("linear_bias"), True),
        output_bias=first_known(row.flag("linear_bias"), True),
        qk_norm=QKNorm(norm=norm) if row.flag("qk_norm") else None,
    )
    return Layer(mixer=attention, ffn=ffn)


def _feed_forward(row: Row) -> Dense | Gated:
    width = first_known(row.count("ffn"), 4 * row.size("hidden"))
    activation, bias = row.choice("activation", _ACTIVATIONS), first_known(row.flag("linear_bias"), True)
    return (Gated if activation == "silu" else Dense)(intermediate_size=width, activation=activation, bias=bias)


def capacity(row: Row) -> float | None:
    """Return the capacity of an expert, divided by its even share of the tokens. None: it takes all its tokens."""
    return row.number("capacity_factor")


def _mixture(row: Row) -> MoE:
    activation = row.choice("activation", _ACTIVATIONS)
    bias, shared = first_known(row.flag("linear_bias"), True), row.count("shared_ffn")
    sigmoid = row.text("router_score") == "sigmoid"
    return MoE(
        num_experts=row.size("experts"),
        num_experts_per_tok=_at_most(row, "topk", row.size("experts")),
        intermediate_size=first_known(row.count("moe_ffn"), row.count("ffn"), 4 * row.size("hidden")),
        activation=activation,
        gated=activation == "silu",
        bias=bias,
        router=Router(scores="sigmoid" if sigmoid else "softmax"),
        shared=SharedExperts(intermediate_size=shared, bias=bias) if shared else None,
        capacity_factor=capacity(row),
    )
