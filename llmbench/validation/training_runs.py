"""Compare published memory of training runs (papers and benchmark tables) with the predicted memory."""

from __future__ import annotations

import re
from typing import Any, Literal, NamedTuple, get_args

from llmbench.sizing.memory import Memory
from llmbench.sizing.recipe import PrecisionName, training_precision
from llmbench.sizing.training import training_memory
from llmbench.sizing.workload import Layout
from llmbench.spec.ffn import Dense, MoE
from llmbench.spec.mixer import Attention
from llmbench.spec.model import Layer, ModelSpec, Norm
from llmbench.spec.override import override
from llmbench.spec.position import LearnedPositions
from llmbench.validation.comparison import Answer, Figure, printed
from llmbench.validation.models import bundled_model
from llmbench.validation.rows import RefusedError, Row, first_known, whole

__all__ = ["answer"]

_UNITS = {"GiB": 2**30, "GB": 10**9, "MiB": 2**20, "MB": 10**6, "B": 1, "bytes": 1}
_QUANTITIES: dict[str, Literal["peak", "activations", "states", "reserved"]] = {
    "peak_allocated_per_gpu": "peak",
    "activations_per_gpu_first_stage": "activations",
    "params_and_optimizer_per_gpu": "states",
    "peak_reserved_per_gpu": "reserved",
    "peak memory per GPU": "reserved",  # torchtitan's tables
}
"""The quantities that are bytes of one GPU. `states` are weights, gradients and optimizer states of the layers, and
`activations` is what the layers save."""

_FRAGMENTS = (
    "reserved memory: llmbench counts the allocated bytes and the block of the first copy of the logits. Free blocks "
    "that no later tensor fits into depend on the order of all allocations and on their streams, which llmbench does "
    "not follow"
)
"""Why the reserved memory is not computed further. PyTorch's allocator rounds large blocks up to 2 MiB, which is under
0.1% here. It keeps free blocks, and a block of one stream serves no other stream, so FSDP's gathered weights have
blocks of their own (c10/cuda/CUDACachingAllocator.cpp)."""


class _Software(NamedTuple):
    """What a framework does in every run."""

    framework: str
    kernels: Literal["fused", "eager"]
    attention: Literal["flash", "standard"] = "flash"
    dropout: bool = False
    precision: PrecisionName = "mixed-fp32-grads"  # fp32 gradients, states and master copy

    def in_words(self) -> str:
        """Return the assumptions behind a figure of this framework."""
        words = [
            f"{self.kernels} kernels" if self.kernels == "fused" else "plain torch without fused kernels",
            "flash attention" if self.attention == "flash" else "attention that stores its scores",
            *(["dropout"] if self.dropout else []),
            "AdamW",
            f"gradients in {training_precision(self.precision).gradients} (precision {self.precision})",
            "plain cross-entropy",
        ]
        return f"assumed for framework {self.framework}: {', '.join(words)}"


_FRAMEWORKS = {
    software.framework: software
    for software in (
        # section 4: dropout on attention and hidden states, scores in memory; table 3: Megatron-LM
        _Software("megatron-2022", "fused", "standard", dropout=True),
        _Software("megatron", "fused"),
        _Software("torchtitan", "eager"),
        _Software("llmbench", "fused", precision="mixed"),  # the defaults of `llmbench memory`
    )
}
"""The frameworks that the column `framework` can name."""

_SOURCES = {
    "Korthikanti": "megatron-2022",
    "2205.05198": "megatron-2022",
    "Megatron": "megatron",
    "torchtitan": "torchtitan",
}
"""The framework of a run without a value in the column `framework`, by a word in the column `source`."""


def answer(row: Row) -> Answer:
    """Compare the memory of one run with the prediction from its layout and recipe."""
    quantity = _QUANTITIES.get(row.text("quantity"))
    if quantity is None:
        raise RefusedError(f"column `quantity`: {row.text('quantity')[:60]!r} is not the memory of one GPU")
    unit = row.choice("unit", _UNITS)
    measured, tolerance = printed(row.text("value"), unit)
    software = _software(row)
    parts = _parts(row, software, quantity)
    figure = Figure(quantity=f"{quantity}_bytes", measured=measured, ours=sum(parts.values()), tolerance=tolerance)
    note = _FRAGMENTS if quantity == "reserved" else ""
    known = row.text("framework") or _framework_of_source(row)
    doubt = "" if known else "the row names no framework, and the figure is that of llmbench's own kernels"
    return Answer(figures=(figure,), parts=parts, assumed=software.in_words(), note=note, doubt=doubt)


def _framework_of_source(row: Row) -> str | None:
    return next((framework for word, framework in _SOURCES.items() if word in row.text("source")), None)


def _software(row: Row) -> _Software:
    """Return the software of a run, with the precision of the row.

    Papers write the precision in words of their own, so a run that is known by its source has that of its software.
    """
    by_source = _framework_of_source(row)
    if by_source is not None and not row.text("framework"):
        return _FRAMEWORKS[by_source]
    software = row.choice("framework", {"": _FRAMEWORKS["llmbench"], **_FRAMEWORKS})
    precision = row.choice("precision", {"": software.precision, **{name: name for name in get_args(PrecisionName)}})
    return software._replace(precision=precision)


def _parts(row: Row, software: _Software, quantity: str) -> dict[str, float]:
    """Return the terms of the figure for a quantity, in bytes."""
    spec, layout, seq = _model(row.text("model")), _layout(row), row.size("seq_len")
    if quantity == "states":
        layers = override(spec, {"vocab_size": 1, "positions": {"kind": "none"}})
        states = training_memory(layers, seq, layout=layout, precision=software.precision).full_bytes
        return {part: states[part] for part in ("weights", "gradients", "optimizer")}
    memory = _memory(row, software, spec, layout, seq)
    if quantity == "activations":
        # Korthikanti's formula leaves out the embedding (section 4.3). Twice the layers add what the layers save.
        twice = override(spec, {"num_hidden_layers": 2 * spec.num_hidden_layers})
        doubled = _memory(row, software, twice, layout, seq).full_bytes["activations"]
        return {"activations": doubled - memory.full_bytes["activations"]}
    if quantity == "reserved":
        return {**memory.parts_bytes, "free_blocks": memory.reserved_bytes - memory.peak_bytes}
    return dict(memory.parts_bytes)


def _memory(row: Row, software: _Software, spec: ModelSpec, layout: Layout, seq: int) -> Memory:
    micro_batch = row.size("micro_batch")
    batch = row.count("global_batch")
    return training_memory(
        spec,
        seq,
        micro_batch=micro_batch,
        micro_batches=max(1, batch // (micro_batch * layout.dp)) if batch else None,
        layout=layout,
        precision=software.precision,
        recompute=row.choice(
            "recompute", {name or "": name or "none" for name in ("", "none", "selective", "full", "every-second")}
        ),
        attention=software.attention,
        kernels=software.kernels,
        dropout=software.dropout,
    )


def _layout(row: Row) -> Layout:
    sizes: dict[str, Any] = {name: row.size(name, 1) for name in ("tp", "pp", "interleave", "dp", "cp", "ep")}
    sharded = sizes["dp"] * sizes["cp"] > 1  # a distributed optimizer of one replica stores everything
    return Layout(**sizes, sp=bool(row.flag("sp")), zero=first_known(row.count("zero"), 0) if sharded else 0)


_GPT = re.compile(r"[\w.-]+: (\d+) layers, hidden (\d+), (\d+) heads, ffn 4h, vocab (\d+)")
_CUT = re.compile(r"(\S+)(?: cut to (\d+) layers(?: \((\d+) dense\))?)?")


def _model(text: str) -> ModelSpec:
    """Return the model that a text describes.

    `gpt-175b: 96 layers, hidden 12288, 96 heads, ffn 4h, vocab 51200` is a GPT. `deepseek-v3 cut to 4 layers (1 dense)`
    is a bundled model with fewer layers.
    """
    if (gpt := _GPT.fullmatch(text)) is not None:
        return _gpt(*map(whole, gpt.groups()))
    cut = _CUT.fullmatch(text)
    if cut is None:
        raise RefusedError(f"column `model`: llmbench cannot read {text[:80]!r}" if text else "the row names no model")
    spec = bundled_model(cut[1])
    if cut[2] is None:
        return spec
    layers, dense = whole(cut[2]), whole(cut[3] or "0")
    moe = [name for name, layer in spec.layers.items() if isinstance(layer.ffn, MoE)]
    if cut[3] is None or not moe:
        return override(spec, {"num_hidden_layers": layers})
    plain = next((name for name in spec.layers if name not in moe), None)
    if plain is None or not 0 < dense < layers:
        raise RefusedError(f"column `model`: {spec.name} cannot have {dense} dense of {layers} layers")
    return override(spec, {"pattern": f"{dense}*{plain} {layers - dense}*{moe[0]}"})


def _gpt(layers: int, hidden: int, heads: int, vocab: int) -> ModelSpec:
    if not heads or hidden % heads:
        raise RefusedError(f"column `model`: {heads} heads do not divide the width {hidden}")
    mixer = Attention(
        num_attention_heads=heads, num_key_value_heads=heads, head_dim=hidden // heads, qkv_bias=True, output_bias=True
    )
    spec = ModelSpec(
        name=f"gpt-{layers}x{hidden}",
        source="a file",
        pattern=f"{layers}*block",
        layers={"block": Layer(mixer=mixer, ffn=Dense(intermediate_size=4 * hidden, bias=True))},
        vocab_size=vocab,
        hidden_size=hidden,
        tie_word_embeddings=True,
        positions=LearnedPositions(num_positions=2048),
        norm=Norm(kind="layernorm", bias=True),
    )
    return override(spec, {"source": "column `model`"})  # it checks every field
