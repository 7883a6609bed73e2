"""`llmbench compare`: architectures side by side."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from llmbench.cli.options import (
    SEQ,
    As,
    Models,
    Output,
    Seq,
    Set,
    answer,
    approximate_lines,
    length_notes,
    load,
    title,
)
from llmbench.report.describe import activation_text, distinct, ffn_text, mixer_text, positions_text
from llmbench.report.document import Block, Column, Document, Table
from llmbench.report.units import billions, plural, si, size
from llmbench.sizing.flops import count_flops
from llmbench.sizing.kvcache import kv_cache
from llmbench.sizing.params import count_parameters
from llmbench.sizing.workload import Workload
from llmbench.spec.ffn import FFN, MoE
from llmbench.spec.mixer import Attention, LatentAttention, branches
from llmbench.spec.model import Layer, ModelSpec


def command(models: Models, seq: Seq = SEQ, set: Set = None, format: As = "table", output: Output = None) -> None:
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
                "approximate_because": list(spec.approximate),
                "notes": [*spec.notes, *length_notes(spec, seq)],
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
                headline=f"FLOPs and cache at {plural(seq, 'token')}, bf16",
                table=Table(columns=columns, rows=rows),
                lines=lines,
                notes=[note for spec in specs for note in length_notes(spec, seq)],
            )
        )
    answer(document, format, output)


def _describe(spec: ModelSpec, seq: int) -> dict[str, tuple[Any, str]]:
    """Each property as (value for machines, text for people)."""
    counted = count_parameters(spec)
    cache = kv_cache(spec, seq)
    flops = count_flops(spec, Workload.prefill(seq))
    decode = count_flops(spec, Workload.decode(seq)).per_token if spec.decodes else None
    layers = list(spec.layers.values())
    attentions = _attentions(spec)
    ffns = [layer.ffn for layer in layers if layer.ffn is not None]
    parallel = any(layer.placement.startswith("parallel") for layer in layers)
    decoder, encoder = spec.num_hidden_layers, len(spec.encoder.order) if spec.encoder else None
    context = spec.max_position_embeddings
    return {
        "parameters": (counted.total, billions(counted.total)),
        "active_parameters": (counted.active, billions(counted.active)),
        "positions": _each(positions_text(spec.positions_of(mixer)) for mixer in attentions),
        "norm": (_norm(spec), _norm(spec)),
        "norm_placement": _each(layer.placement.replace("_", " ") for layer in layers),
        "parallel_block": (parallel, _yes(parallel)),
        "attention": _each(mixer_text(layer.mixer) for layer in layers if layer.mixer is not None),
        "head_dim": (_numbers(_head_dims(mixer)[0] for mixer in attentions), _each(map(_heads, attentions))[1]),
        "v_head_dim": (_numbers(_head_dims(mixer)[1] for mixer in attentions), "none"),  # a row above has it
        "window": (_numbers(mixer.sliding_window for mixer in attentions), _each(map(_window, attentions))[1]),
        "attention_chunk_size": (_numbers(getattr(m, "attention_chunk_size", None) for m in attentions), "none"),
        "qk_norm": _each(
            mixer.qk_norm.over if mixer.qk_norm else "none" for mixer in attentions if isinstance(mixer, Attention)
        ),
        "biases": (_biases(layers), ", ".join(_biases(layers)) or "none"),
        "feed_forward": _each(map(ffn_text, ffns)),
        "activation": _each(activation_text(ffn.activation) for ffn in ffns),
        "moe": _each(map(_moe, ffns)),
        "layers": (decoder, str(decoder) if encoder is None else f"{encoder} + {decoder}"),
        "encoder_layers": (encoder, "none"),  # the row above says it
        "pattern": (spec.pattern, spec.pattern),
        "hidden_size": (spec.hidden_size, f"{spec.hidden_size:,}"),
        "vocab_size": (spec.vocab_size, f"{spec.vocab_size:,}"),
        "tied_embeddings": (spec.tie_word_embeddings, _yes(spec.tie_word_embeddings)),
        "context": (context, "–" if context is None else f"{context:,}"),
        "kv_bytes_per_token": (cache.bytes_per_token, size(cache.bytes_per_token)),
        "kv_bytes_per_sequence": (cache.bytes_per_sequence, size(cache.bytes_per_sequence)),
        "prefill_flops_per_token": (flops.per_token, si(flops.per_token).strip()),
        "decode_flops_per_token": (decode, "–" if decode is None else si(decode).strip()),
    }


def _each(texts: Iterable[str]) -> tuple[list[str], str]:
    """What the kinds of layers have: for machines a list without "none" where none has it."""
    found = distinct(texts)
    return [] if found == ["none"] else found, "; ".join(found) or "none"


def _numbers(values: Iterable[int | None]) -> list[int | None]:
    """The numbers that kinds of layers have, each once; null is of those that have none, where others do."""
    found = list(dict.fromkeys(values))
    return [] if found == [None] else found


def _yes(value: bool) -> str:
    return "yes" if value else "no"


def _attentions(spec: ModelSpec) -> list[Attention | LatentAttention]:
    mixers = [mixer for layer in spec.layers.values() for mixer in branches(layer.mixer)]
    return [mixer for mixer in mixers if isinstance(mixer, (Attention, LatentAttention))]


def _norm(spec: ModelSpec) -> str:
    name = {"rmsnorm": "RMSNorm", "layernorm": "LayerNorm"}[spec.norm.kind]
    if not spec.norm.weight:
        return f"{name} without weights"
    return f"{name} with bias" if spec.norm.bias else name


def _head_dims(mixer: Attention | LatentAttention) -> tuple[int, int]:
    if isinstance(mixer, LatentAttention):
        return mixer.qk_head_dim, mixer.v_head_dim
    return mixer.head_dim, mixer.value_dim


def _heads(mixer: Attention | LatentAttention) -> str:
    of_keys, of_values = _head_dims(mixer)
    alike = of_keys == of_values and not isinstance(mixer, LatentAttention)
    return f"{of_keys}" if alike else f"{of_keys} / {of_values}"


def _window(mixer: Attention | LatentAttention) -> str:
    if mixer.sliding_window:
        return f"{mixer.sliding_window:,}"
    chunk = getattr(mixer, "attention_chunk_size", None)
    return f"chunks of {chunk:,}" if chunk else "none"


def _biases(layers: list[Layer]) -> list[str]:
    found: list[str] = []
    for layer in layers:
        for mixer in branches(layer.mixer):
            if isinstance(mixer, Attention):
                found += ["q, k, v"] if mixer.qkv_bias else []
                found += ["attention output"] if mixer.output_bias else []
        if layer.ffn is not None and layer.ffn.bias:
            found.append("feed-forward")
    return distinct(found)


def _moe(ffn: FFN) -> str:
    if not isinstance(ffn, MoE):
        return "none"
    shared = f" + shared {ffn.shared.intermediate_size}" if ffn.shared else ""
    return f"{ffn.num_experts_per_tok} of {ffn.num_experts}{shared}, {ffn.router.scores}"
