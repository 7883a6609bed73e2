"""Compare the memory that Megatron-LM logs with the predicted memory of the GPU that logs it.

The last global rank logs. It belongs to the last pipeline stage. A setting that a row leaves out has the default of
Megatron's command line, which `megatron/training/arguments.py` gives: 4 × hidden for the feed-forward, dropout 0.1,
GELU, LayerNorm, biases, learned positions, a tied head, and fp32 gradient buffers with bf16 weights.
"""

from __future__ import annotations

import re
from typing import Literal, get_args

from llmbench.errors import LLMBenchError
from llmbench.sizing.memory import Memory, cublas_workspace
from llmbench.sizing.recipe import Optimizer, PrecisionName, Recipe
from llmbench.sizing.recompute import Module
from llmbench.sizing.stages import Stage
from llmbench.sizing.training import stage_memories, training_run
from llmbench.sizing.training_step import TrainingRun
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


def answer(row: Row) -> Answer:
    """Compare the peak since the start of the process, and the bytes that are allocated after an optimizer step."""
    memory, copies = logged(row)
    parts: dict[str, float] = dict(memory.parts_bytes)
    if memory.moment == "loss":
        parts["attention_mask"] = _attention_mask(row)
    figures = [Figure(quantity="peak_bytes", measured=row.needed("mem_max_last"), ours=sum(parts.values()))]
    allocated = row.number("mem_allocated_last")
    if allocated is not None:
        figures.append(Figure(quantity="static_bytes", measured=allocated, ours=memory.steady_bytes + copies))
    return Answer(figures=tuple(figures), doubt=_doubt(row), parts=parts)


def _attention_mask(row: Row) -> int:
    """Return the bytes of the mask that Megatron's data loader makes: one byte per query and key of each sequence.

    The forward pass holds it until the loss is computed. There, as many bytes of logits exist as in the backward pass:
    16-bit logits with their fp32 copy, or the fp32 softmax with its 16-bit gradient.
    """
    return 0 if row.flag("no_mask_from_loader") else row.size("micro_batch") * row.size("seq_len") ** 2


def _doubt(row: Row) -> str:
    """Return why the settings of a row are uncertain, or ""."""
    if row.text("suspect"):
        return row.text("suspect")
    if _capability(row) >= 10 and not row.flag("deterministic"):
        return "the row does not say which PyTorch ran, and cuBLAS's workspaces on Blackwell depend on it"
    container = row.text("id").rpartition("/")[2]
    if container.startswith("lts") and "auto" in row.text("attention_kind") and row.flag("deterministic"):
        return "the row does not say which attention is deterministic in the older container (lts)"
    return ""


def logged(row: Row) -> tuple[Memory, int]:
    """Return the memory of the stage that logs, and the bytes of the fp32 copies of its gradients.

    Raises RefusedError for a setting that llmbench cannot compute.
    """
    _refuse_unknown(row)
    layout = layout_of(row)
    run = training_run(
        model_of(row),
        row.size("seq_len"),
        micro_batch=row.size("micro_batch"),
        micro_batches=row.size("micro_batches", 2 * layout.pp),
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
            weights_before_down=True,
            gradient_buffers=True,
        ),
        workspace_bytes=_workspaces(row, layout),
    )
    index = row.count("logging_stage")
    if index is None or index >= len(run.stages):
        raise RefusedError(f"column `logging_stage`: {index}, but the layout has {len(run.stages)} stages")
    return stage_memories(run)[index], _gradient_copies(row, run, run.stages[index])


def _gradient_copies(row: Row, run: TrainingRun, stage: Stage) -> int:
    """Return the bytes of the fp32 copies of 16-bit gradients, which are split as the master copies are.

    The optimizer makes them, and the next step frees them at its start.
    """
    if row.text("grad_dtype") not in ("fp16", "bf16"):
        return 0
    return sum(count * run.stored_bytes(op, 1, 4 * op.trained) for op, count in stage.counts if op.parameters)


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


def _workspaces(row: Row, layout: Layout) -> int:
    """Return the bytes of library workspaces, and of buffers that Megatron never frees.

    - cuBLAS: one workspace for each of two threads, which run the forward and the backward pass. Deterministic runs
      set it to :4096:8, which is 32 MiB.
    - Transformer Engine (pytorch/module/base.py): 32 MiB since Hopper, 4 MiB before. Grouped matrix products have one
      such workspace for each of four streams.
    - Megatron's global memory buffer (core/utils.py): with sequence parallelism, the gathered input of the head. With
      Megatron's own attention (transformer_impl local), the scores of one layer.
    """
    mib = 2**20
    capability = _capability(row)
    cublas = 32 * mib if row.flag("deterministic") else cublas_workspace(capability)
    engine = (4 if capability < 9 else 32) * mib
    local = row.text("transformer_impl") == "local"
    total = 2 * cublas + (0 if local else engine)
    if row.flag("grouped_gemm"):
        total += 4 * engine
    tokens = -(-row.size("seq_len") * row.size("micro_batch") // layout.cp)
    if layout.sp:
        total += 2 * tokens * row.size("hidden")
    if local:
        total += 2 * tokens * row.size("seq_len") * row.size("heads") // layout.tp
    return total


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
    """Return the number of multi-token-prediction modules. A layout of the stages without `m` has none."""
    written = row.text("pp_layout")
    if written:
        return written.count("m")
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
        capacity_factor=row.number("capacity_factor"),
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
    written = re.sub(r"[\\\\,\s]", "", row.text("pp_layout"))
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
        stages=written,
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
        raise RefusedError("column `cuda_graph`: CUDA graphs keep buffers that llmbench does not compute")
    if "defer-embedding-wgrad-compute" in row.text("overlap_other"):
        raise RefusedError("column `overlap_other`: llmbench does not compute deferred gradients of the head")
    if row.flag("precision_aware_optimizer"):
        raise RefusedError("column `precision_aware_optimizer`: llmbench does not compute its states")


def _dense_first(pattern: str) -> bool:
    """Return whether a pattern such as `([0]*3+[1]*11)` says that the first layers are dense and all others not."""
    return re.fullmatch(r"\(?\[0\]\*\d+\+\[1\]\*\d+\)?", pattern) is not None
