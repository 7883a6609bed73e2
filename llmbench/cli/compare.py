"""`llmbench compare`: architectures side by side."""

from __future__ import annotations

from typing import Any

from llmbench.cli.options import As, Models, Output, Seq, Set, answer, approximate_lines, load, title
from llmbench.report.describe import activation_text, distinct, ffn_text, mixer_text, positions_text
from llmbench.report.document import Block, Column, Document, Table
from llmbench.report.units import billions, si, size
from llmbench.sizing.flops import count_flops
from llmbench.sizing.kvcache import kv_cache
from llmbench.sizing.params import count_parameters
from llmbench.sizing.workload import Workload
from llmbench.spec.ffn import MoE
from llmbench.spec.mixer import Attention, LatentAttention, branches
from llmbench.spec.model import Layer, ModelSpec


def command(models: Models, seq: Seq = 4096, set: Set = None, format: As = "table", output: Output = None) -> None:
    """Architectures side by side, with what they cost.

    Examples:

      llmbench compare gpt2-xl llama2-7b mistral-7b

      llmbench compare deepseek-v3 kimi-k2 qwen3-235b-a22b --seq 32768

      llmbench compare llama3-8b gemma2-9b --format markdown
    """
    specs = [load(text, set) for text in models]
    described = [_describe(spec, seq) for spec in specs]
    document = Document(
        command="compare",
        inputs={"models": models, "seq_len": seq, "set": set or []},
        rows_key="models",
        rows=[
            {
                "model": spec.name,
                "approximate": bool(spec.approximate),
                **{key: raw for key, (raw, _) in fields.items()},
            }
            for spec, fields in zip(specs, described, strict=True)
        ],
        blocks=[],
    )
    if format != "json":
        rows = [
            [key.replace("_", " "), *(fields[key][1] for fields in described)]
            for key in described[0]
            if any(fields[key][1] not in ("none", "no") for fields in described)
        ]
        columns = [Column(""), *(Column(title(spec), wraps=True) for spec in specs)]
        lines = [f"{spec.name}: {line}" for spec in specs for line in approximate_lines(spec)]
        document.blocks.append(
            Block(
                headline=f"FLOPs and cache at {seq:,} tokens, bf16",
                table=Table(columns=columns, rows=rows),
                lines=lines,
            )
        )
    answer(document, format, output)


def _describe(spec: ModelSpec, seq: int) -> dict[str, tuple[Any, str]]:
    """Each property as (value for machines, text for people)."""
    counted = count_parameters(spec)
    cache = kv_cache(spec, seq)
    flops = count_flops(spec, Workload.prefill(seq))
    decode = count_flops(spec, Workload.decode(seq))
    layers = list(spec.layers.values())
    texts = {
        "positions": _each(positions_text(spec.positions_of(m)) for m in _attentions(spec)) or "none",
        "norm": _norm(spec),
        "norm_placement": _each(layer.placement.replace("_", " ") for layer in layers),
        "parallel_block": "yes" if any(layer.placement.startswith("parallel") for layer in layers) else "no",
        "attention": _each(mixer_text(layer.mixer) for layer in layers if layer.mixer is not None) or "none",
        "head_dim": _each(_heads(m) for m in _attentions(spec)) or "none",
        "window": _each(_window(m) for m in _attentions(spec)) or "none",
        "qk_norm": _each(m.qk_norm.over if m.qk_norm else "none" for m in _attentions(spec) if isinstance(m, Attention))
        or "none",
        "biases": _biases(layers),
        "feed_forward": _each(ffn_text(layer.ffn) for layer in layers if layer.ffn is not None) or "none",
        "activation": _each(activation_text(_activation(layer)) for layer in layers if layer.ffn is not None) or "none",
        "moe": _each(_moe(layer) for layer in layers if layer.ffn is not None) or "none",
        "layers": str(spec.num_hidden_layers)
        if spec.encoder is None
        else f"{len(spec.encoder.order)} + {spec.num_hidden_layers}",
        "pattern": spec.pattern,
    }
    context = spec.max_position_embeddings
    return {
        "parameters": (counted.total, billions(counted.total)),
        "active_parameters": (counted.active, billions(counted.active)),
        **{key: (text, text) for key, text in texts.items()},
        "hidden_size": (spec.hidden_size, f"{spec.hidden_size:,}"),
        "vocab_size": (spec.vocab_size, f"{spec.vocab_size:,}"),
        "tied_embeddings": (spec.tie_word_embeddings, "yes" if spec.tie_word_embeddings else "no"),
        "context": (context, "–" if context is None else f"{context:,}"),
        "kv_bytes_per_token": (cache.bytes_per_token, size(cache.bytes_per_token)),
        "kv_bytes_per_sequence": (cache.bytes_per_sequence, size(cache.bytes_per_sequence)),
        "prefill_flops_per_token": (flops.per_token, si(flops.per_token).strip()),
        "decode_flops_per_token": (decode.per_token, si(decode.per_token).strip()),
    }


def _attentions(spec: ModelSpec) -> list[Attention | LatentAttention]:
    mixers = [mixer for layer in spec.layers.values() for mixer in branches(layer.mixer)]
    return [mixer for mixer in mixers if isinstance(mixer, (Attention, LatentAttention))]


def _each(texts: Any) -> str:
    return "; ".join(distinct(texts))


def _norm(spec: ModelSpec) -> str:
    name = {"rmsnorm": "RMSNorm", "layernorm": "LayerNorm"}[spec.norm.kind]
    if not spec.norm.weight:
        return f"{name} without weights"
    return f"{name} with bias" if spec.norm.bias else name


def _heads(mixer: Attention | LatentAttention) -> str:
    if isinstance(mixer, LatentAttention):
        return f"{mixer.qk_head_dim} / {mixer.v_head_dim}"
    return f"{mixer.head_dim}" if mixer.head_dim == mixer.value_dim else f"{mixer.head_dim} / {mixer.value_dim}"


def _window(mixer: Attention | LatentAttention) -> str:
    if mixer.sliding_window:
        return f"{mixer.sliding_window:,}"
    chunk = getattr(mixer, "attention_chunk_size", None)
    return f"chunks of {chunk:,}" if chunk else "none"


def _biases(layers: list[Layer]) -> str:
    found = []
    for layer in layers:
        for mixer in branches(layer.mixer):
            if isinstance(mixer, Attention):
                found += ["q, k, v"] if mixer.qkv_bias else []
                found += ["attention output"] if mixer.output_bias else []
        if layer.ffn is not None and layer.ffn.bias:
            found.append("feed-forward")
    return ", ".join(distinct(found)) or "none"


def _activation(layer: Layer) -> str:
    assert layer.ffn is not None
    return layer.ffn.activation


def _moe(layer: Layer) -> str:
    ffn = layer.ffn
    if not isinstance(ffn, MoE):
        return "none"
    shared = f" + shared {ffn.shared.intermediate_size}" if ffn.shared else ""
    return f"{ffn.num_experts_per_tok} of {ffn.num_experts}{shared}, {ffn.router.scores}"
