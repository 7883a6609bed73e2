"""Compare the memory that Megatron-LM logs with the predicted memory of the GPU that logs it.

The last global rank logs. It belongs to the last pipeline stage. A setting that a row leaves out has the default of
Megatron's command line, which `megatron/training/arguments.py` gives: 4 × hidden for the feed-forward, dropout 0.1,
GELU, LayerNorm, biases, learned positions, a tied head, and fp32 gradient buffers with bf16 weights.
"""

from __future__ import annotations

import re
from typing import Any, Literal, get_args

from llmbench.errors import LLMBenchError
from llmbench.sizing.dtypes import DType
from llmbench.sizing.memory import Memory
from llmbench.sizing.recipe import Optimizer, PrecisionName, Recipe
from llmbench.sizing.recompute import Module
from llmbench.sizing.training import stage_memories, training_run
from llmbench.sizing.workload import Layout, Loss, Recompute
from llmbench.spec.catalog import find_device_head
from llmbench.validation.comparison import Answer, Figure
from llmbench.validation.megatron_model import capacity, model_of, mtp_modules
from llmbench.validation.rows import RefusedError, Row, first_known

__all__ = ["answer"]

_PRECISIONS: dict[tuple[str, str], PrecisionName] = {
    ("bf16", "fp32"): "mixed-fp32-grads",
    ("bf16", "bf16"): "mixed",
    ("fp16", "fp16"): "mixed",
    ("fp16", "fp32"): "mixed-fp32-grads",
    ("fp32", "fp32"): "fp32",
}
_OPTIMIZERS: dict[str, Optimizer] = {"": "adamw", "adam": "adamw", "muon": "muon"}
_FSDP = {"": 0, "no_shard": 0, "optim": 1, "optim_grads": 2, "optim_grads_params": 3}
"""The ZeRO stage of each --data-parallel-sharding-strategy (docs/user-guide/features/megatron_fsdp.md)."""
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
    if row.text("cuda_graph") not in _NO_GRAPHS:
        # --cuda-graph-warmup-steps is 3 by default (docs/user-guide/features/cuda_graph.md). PyTorch changes its
        # counters when a tensor is allocated or freed. The replay of a graph does neither.
        return (
            "the row does not say which modules the CUDA graphs capture, nor after how many steps. The figure is that "
            "of a step without graphs. The inputs of graphs take more memory, and PyTorch's counters leave out the "
            "activations inside of them"
        )
    if row.text("fsdp"):
        return (
            "the row does not say whether Megatron-FSDP keeps two permanent buffers for gathered weights, and the "
            "transposes of fp8 weights (--fsdp-double-buffer, --keep-fp8-transpose-cache). The figure has none"
        )
    if _capability(row) >= 10 and not row.flag("deterministic"):
        return "the row does not say which PyTorch ran, and cuBLAS's workspaces on Blackwell depend on it"
    container = row.text("id").rpartition("/")[2]
    if container.startswith("lts") and "auto" in row.text("attention_kind") and row.flag("deterministic"):
        return "the row does not say which attention is deterministic in the older container (lts)"
    if row.flag("precision_aware_optimizer") and not row.text("exp_avg_dtype"):
        return "the row does not give the formats of the precision-aware optimizer (--exp-avg-dtype and others)"
    if _defers(row) and row.count("wgrad_deferral_limit") is None:
        return "the row does not say how many micro-batches defer the gradients of the head (--wgrad-deferral-limit)"
    rise = row.number("mem_max_step_of_last_rise") or 0
    if row.count("experts") and rise > _SETTLED and row.text("router_balance") != "sinkhorn" and not capacity(row):
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
            **_formats(row),
            mtp=bool(mtp_modules(row)),
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


_NO_GRAPHS = ("", "none")
"""The texts of the column `cuda_graph` of runs without CUDA graphs (--cuda-graph-impl)."""
_STATES: dict[str, DType] = {"": "fp32", "fp32": "fp32", "bf16": "bf16", "fp16": "fp16", "fp8": "fp8"}
_MASTERS: dict[str, Literal["remainder", "fp16"]] = {"": "remainder", "fp32": "remainder", "fp16": "fp16"}
"""The formats of the precision-aware optimizer. Of an fp32 master copy, it stores the bits that bf16 weights lack."""


def _formats(row: Row) -> dict[str, Any]:
    """Return the items of the recipe for the formats of the precision-aware optimizer."""
    if not row.flag("precision_aware_optimizer"):
        return {}
    moments = row.choice("exp_avg_dtype", _STATES), row.choice("exp_avg_sq_dtype", _STATES)
    return {"states": moments, "master": row.choice("main_params_dtype", _MASTERS)}


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


def _stages(row: Row) -> str:
    """Return the notation of the pipeline stages.

    Megatron's versions before `m` was in the notation put the modules for multi-token prediction on the last stage
    (`get_mtp_num_layers_to_build` in core/transformer/multi_token_prediction.py). Later versions refuse a notation
    without them.
    """
    written = re.sub(r"[\\\\,\s]", "", row.text("pp_layout"))
    modules = mtp_modules(row)
    if not written or not modules or "m" in written:
        return written
    return re.sub("L$", "m" * modules + "L", written)


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
    zero = (_fsdp(row) if row.text("fsdp") else int(bool(row.flag("dist_optimizer")))) if dp * cp > 1 else 0
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
        zero=zero,
        instances=row.size("dist_opt_instances", 1) if zero else 1,
    )


def _fsdp(row: Row) -> int:
    """Return the ZeRO stage of a run with Megatron-FSDP."""
    library, _, strategy = row.text("fsdp").partition(" ")
    if library != "megatron-fsdp" or strategy not in _FSDP:
        known = ", ".join(filter(None, _FSDP))
        raise RefusedError(
            f"column `fsdp`: llmbench does not know {row.text('fsdp')[:60]!r}; it knows megatron-fsdp with one of "
            f"{known}"
        )
    return _FSDP[strategy]


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
        ("moe_layer_freq", "a pattern of layers with and without experts that is not at the start"),
    ):
        text = row.text(column)
        if text and not (column == "moe_layer_freq" and _dense_first(text)):
            raise RefusedError(f"column `{column}`: llmbench does not compute {what} ({text[:40]})")


def _dense_first(pattern: str) -> bool:
    """Return whether a pattern such as `([0]*3+[1]*11)` says that the first layers are dense and all others not."""
    return re.fullmatch(r"\(?\[0\]\*\d+\+\[1\]\*\d+\)?", pattern) is not None
