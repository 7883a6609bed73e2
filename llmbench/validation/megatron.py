"""Compare the memory that Megatron-LM logs with the predicted memory of the GPU that logs it.

The last global rank logs. It belongs to the last pipeline stage. A setting that a row leaves out has the default of
Megatron's command line, which `megatron/training/arguments.py` gives: 4 × hidden for the feed-forward, dropout 0.1,
GELU, LayerNorm, biases, learned positions, a tied head, and fp32 gradient buffers with bf16 weights.
"""

from __future__ import annotations

import re
from typing import Literal, get_args

from llmbench.errors import LLMBenchError
from llmbench.sizing.memory import Memory
from llmbench.sizing.recipe import Optimizer, PrecisionName, Recipe
from llmbench.sizing.recompute import Module
from llmbench.sizing.training import stage_memories, training_run
from llmbench.sizing.workload import Layout, Loss, Recompute
from llmbench.spec.catalog import find_device_head
from llmbench.spec.ffn import FFN, Dense, Gated, MoE, Router, SharedExperts
from llmbench.spec.mixer import Attention, LatentAttention, Mamba2, QKNorm
from llmbench.spec.model import Layer, ModelSpec, NextTokenPrediction, Norm
from llmbench.spec.override import override
from llmbench.spec.position import LearnedPositions, NoPositions, Positions, Rope
from llmbench.validation.comparison import Answer, Figure
from llmbench.validation.rows import RefusedError, Row, first_known

__all__ = ["answer", "model_of"]

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
_PRECISIONS: dict[tuple[str, str], PrecisionName] = {
    ("bf16", "fp32"): "mixed-fp32-grads",
    ("bf16", "bf16"): "mixed",
    ("fp16", "fp16"): "mixed",
    ("fp16", "fp32"): "mixed-fp32-grads",
    ("fp32", "fp32"): "fp32",
}
_OPTIMIZERS: dict[str, Optimizer] = {"": "adamw", "adam": "adamw", "muon": "muon"}
_LOSSES: dict[str, Loss] = {"": "plain", "no": "plain", "native": "fused", "te": "inplace"}


_SETTLED = 5
"""The step until which the peak rises for other reasons: the optimizer states exist since the second step, and some
logs have only every fifth step."""


def answer(row: Row) -> Answer:
    """Compare the peak since the start of the process, and the bytes that are allocated after an optimizer step."""
    memory = logged(row)
    figures = [Figure(quantity="peak_bytes", measured=row.needed("mem_max_last"), ours=memory.peak_bytes)]
    allocated = row.number("mem_allocated_last")
    if allocated is not None:
        figures.append(Figure(quantity="static_bytes", measured=allocated, ours=memory.steady_bytes))
    return Answer(figures=tuple(figures), doubt=_doubt(row), parts=dict(memory.parts_bytes))


def _doubt(row: Row) -> str:
    """Return why the settings of a row are uncertain, or ""."""
    if row.text("suspect"):
        return row.text("suspect")
    if _capability(row) >= 10 and not row.flag("deterministic"):
        return "the row does not say which PyTorch ran, and cuBLAS's workspaces on Blackwell depend on it"
    container = row.text("id").rpartition("/")[2]
    if container.startswith("lts") and "auto" in row.text("attention_kind") and row.flag("deterministic"):
        return "the row does not say which attention is deterministic in the older container (lts)"
    if _defers(row) and row.count("wgrad_deferral_limit") is None:
        return "the row does not say how many micro-batches defer the gradients of the head (--wgrad-deferral-limit)"
    rise = row.number("mem_max_step_of_last_rise") or 0
    if row.count("experts") and rise > _SETTLED and row.text("router_balance") != "sinkhorn" and not _capacity(row):
        return (
            f"the peak still rose at step {rise:g}: without a capacity or forced balance, the routing decides how many "
            "tokens the experts of this GPU get, and the row does not give it"
        )
    return ""


def logged(row: Row) -> Memory:
    """Return the memory of the stage that logs.

    Raises RefusedError for a setting that llmbench cannot compute.
    """
    _refuse_unknown(row)
    layout = layout_of(row)
    passes = row.size("micro_batches", 2 * layout.pp)
    run = training_run(
        model_of(row),
        row.size("seq_len"),
        micro_batch=row.size("micro_batch"),
        micro_batches=passes,
        layout=layout,
        precision=_precision(row),
        optimizer=row.choice("optimizer", _OPTIMIZERS),
        recompute=_recompute(row),
        attention="standard" if row.text("attention_kind").startswith("unfused") else "flash",
        kernels="fused",
        loss=row.choice("ce_fusion", _LOSSES),
        dropout=bool(first_known(row.number("hidden_dropout"), 0.1)),
        recipe=Recipe(
            mtp=bool(_mtp(row)),
            recompute=_modules(row),
            fp8=_fp8(row),
            fused_gradients=first_known(row.flag("grad_accum_fusion"), True),
            batch_first=_batch_first(row),
            framework="megatron-local" if row.text("transformer_impl") == "local" else "megatron",
            loader_mask=not row.flag("no_mask_from_loader"),
            sequential_experts=not row.flag("grouped_gemm"),
            deterministic=bool(row.flag("deterministic")),
            deferred_heads=_deferred_heads(row, passes),
        ),
        compute_capability=_capability(row),
    )
    index = row.count("logging_stage")
    if index is None or index >= len(run.stages):
        raise RefusedError(f"column `logging_stage`: {index}, but the layout has {len(run.stages)} stages")
    return stage_memories(run)[index]


def _defers(row: Row) -> bool:
    """Return whether the gradients of the head's weights are computed after the last micro-batch."""
    return "defer-embedding-wgrad-compute" in row.text("overlap_other")


def _deferred_heads(row: Row, passes: int) -> int:
    """Return for how many of the `passes` micro-batches they are. Megatron's default is all."""
    return row.size("wgrad_deferral_limit", passes) if _defers(row) else 0


def _batch_first(row: Row) -> bool:
    """Return whether attention computes with the batch first, while Megatron's layers have the sequence first.

    Transformer Engine's FlashAttention does. On Hopper, Transformer Engine prefers cuDNN's attention, which computes
    with the sequence first. On Blackwell, cuDNN's attention is not deterministic, so deterministic runs use
    FlashAttention there.
    """
    kind, capability = row.text("attention_kind"), _capability(row)
    if "auto" not in kind:
        return kind.startswith("flash")
    return capability < 9 or (capability >= 10 and bool(row.flag("deterministic")))


def _capability(row: Row) -> float:
    """Return the compute capability of the GPU of a row. Without a name, the GPU is a Hopper GPU.

    Raises RefusedError for a device that llmbench does not know, or that CUDA does not support.
    """
    name = row.text("gpu")
    try:
        capability = find_device_head(name).compute_capability if name else "9.0"
    except LLMBenchError as problem:
        raise RefusedError(f"column `gpu`: {problem}") from None
    if not capability:
        raise RefusedError(
            f"column `gpu`: {name[:40]!r} is not a GPU from NVIDIA, and the workspaces are those of CUDA"
        )
    return float(capability)


def model_of(row: Row) -> ModelSpec:
    """Return the spec of the model of a row."""
    layers, mtp = row.size("layers"), _mtp(row)
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


def _mtp(row: Row) -> int:
    """Return the number of multi-token-prediction modules."""
    return _at_most(row, "mtp", 16) if row.count("mtp") else 0


def _stages(row: Row) -> str:
    """Return the notation of the pipeline stages.

    Megatron's versions before `m` was in the notation put the modules for multi-token prediction on the last stage
    (`get_mtp_num_layers_to_build` in core/transformer/multi_token_prediction.py). Later versions refuse a notation
    without them.
    """
    written = re.sub(r"[\\\\,\s]", "", row.text("pp_layout"))
    modules = _mtp(row)
    if not written or not modules or "m" in written:
        return written
    return re.sub("L$", "m" * modules + "L", written)


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


def _capacity(row: Row) -> float | None:
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
        capacity_factor=_capacity(row),
    )


def layout_of(row: Row) -> Layout:
    """Return the parallel layout of a row."""
    tp, pp, cp = row.size("tp"), row.size("pp"), row.size("cp", 1)
    dp, gpus = row.count("dp"), row.count("num_gpus")
    if not dp:
        if not gpus or gpus % (tp * pp * cp):
            raise RefusedError("columns `dp` and `num_gpus` are empty, and the optimizer states depend on them")
        dp = gpus // (tp * pp * cp)
    experts, first, layers = row.count("experts"), row.count("first_stage_layers"), row.size("layers")
    chunks = pp * row.size("vp", 1)
    # No column says that the embedding and the loss count as layers. Without them, Megatron would refuse the numbers.
    counted = first is None and not row.text("pp_layout") and layers % chunks > 0 and (layers + 2) % chunks == 0
    sharded = row.flag("dist_optimizer") and dp * cp > 1
    return Layout(
        tp=tp,
        sp=bool(row.flag("sp")) and tp > 1,
        pp=pp,
        interleave=row.size("vp", 1),
        dp=dp,
        cp=cp,
        ep=row.size("ep", 1) if experts else 1,
        etp=row.count("etp") if experts else None,
        first=first,
        last=None if first is None else row.count("last_stage_layers"),
        count_embedding=counted,
        count_loss=counted,
        stages=_stages(row),
        zero=1 if sharded else 0,
        instances=row.size("dist_opt_instances", 1) if sharded else 1,
    )


def _fp8(row: Row) -> Literal["none", "cached", "primary"]:
    """Return what Transformer Engine stores in fp8. One scale per tensor or per block of 32 changes little."""
    if "fp8" not in row.text("precision").split():
        return "none"
    return "primary" if row.flag("fp8_param_gather") else "cached"


def _precision(row: Row) -> PrecisionName:
    words = row.text("precision").split()
    if len(words) > 1 and words[1] != "fp8":
        raise RefusedError(f"column `precision`: llmbench does not know what {' '.join(words[1:])} stores in training")
    pair = (words or ["bf16"])[0], row.text("grad_dtype") or "fp32"
    if pair not in _PRECISIONS:
        raise RefusedError(f"llmbench does not know the precision {pair[0]!r} with {pair[1]} gradients")
    return _PRECISIONS[pair]


def _recompute(row: Row) -> Recompute:
    granularity = row.choice("recompute_granularity", {"": "none", "full": "full", "selective": "selective"})
    if granularity == "full" and row.size("recompute_layers", 1) != 1:
        raise RefusedError("llmbench recomputes each layer by itself, and this run keeps one input per several layers")
    if granularity == "full" and row.text("recompute_method") not in ("", "uniform"):
        raise RefusedError(f"llmbench does not know the recompute method {row.text('recompute_method')!r}")
    # Megatron's parts by name. Without names, it computes the core of attention again.
    named = granularity == "selective" and _modules(row)
    return "none" if named else granularity  # type: ignore[return-value]


def _modules(row: Row) -> tuple[Module, ...]:
    """Return the parts of a layer that a run with selective recomputation names."""
    if row.text("recompute_granularity") != "selective":
        return ()
    names = row.text("recompute_modules").strip("[]").replace(",", " ").split()
    for name in names:
        if name not in get_args(Module):
            raise RefusedError(f"column `recompute_modules`: llmbench cannot compute {name} again alone")
    return tuple(names)  # type: ignore[arg-type]


def _refuse_unknown(row: Row) -> None:
    """Raise RefusedError for the settings that change the memory and that llmbench does not compute."""
    row.choice(
        "model_type", dict.fromkeys(("", "gpt", "gpt-moe", "gpt-mla", "gpt-moe-mla", "hybrid", "hybrid-moe"), True)
    )
    for column, what in (
        ("offload", "offloading"),
        ("fsdp", "Megatron's FSDP"),
        ("moe_layer_freq", "a pattern of layers with and without experts that is not at the start"),
    ):
        text = row.text(column)
        if text and not (column == "moe_layer_freq" and _dense_first(text)):
            raise RefusedError(f"column `{column}`: llmbench does not compute {what} ({text[:40]})")
    if row.text("cuda_graph"):
        raise RefusedError(
            "column `cuda_graph`: the tensors of CUDA graphs are in memory pools, and llmbench does not know how the "
            "graphs of several micro-batches share them"
        )
    if row.flag("precision_aware_optimizer"):
        raise RefusedError("column `precision_aware_optimizer`: llmbench does not compute its states")


def _dense_first(pattern: str) -> bool:
    """Return whether a pattern such as `([0]*3+[1]*11)` says that the first layers are dense and all others not."""
    return re.fullmatch(r"\(?\[0\]\*\d+\+\[1\]\*\d+\)?", pattern) is not None
