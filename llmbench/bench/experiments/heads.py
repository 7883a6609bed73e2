"""Compare MHA, GQA, MQA and MLA at equal hidden size: cache size, speed, and the number of sequences that fit into
memory.

The timed piece is the attention of one layer with its projections. The implementation is `flash` (on a CPU, `sdpa`).
There are two phases: a prefill of whole sequences, and a decoding step with a cache. The columns `parameters` and
`cache per token` describe the timed layer.

The column `largest batch` is computed like `llmbench memory --phase inference`, with the memory that was free at the
start. The whole model is the chosen model with this kind of attention in all layers. Without a chosen model, it has the
depth (32 layers) and the feed-forward ratio of LLaMA-2-7B.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product
from typing import NamedTuple

from msgspec.structs import replace

from llmbench.bench.candidates import Entry, entry_group
from llmbench.bench.experiments.experiment import Ask, Column, Experiment, Group
from llmbench.bench.experiments.synthetic import heads, model_of
from llmbench.bench.pieces import find_piece
from llmbench.bench.pieces.blocks import STEP
from llmbench.bench.pieces.reduce import attention_of, with_attention
from llmbench.measure.results import Row, Scalar
from llmbench.model.devices import free_bytes
from llmbench.sizing.kvcache import kv_cache
from llmbench.sizing.memory import inference_memory
from llmbench.sizing.params import count_parameters
from llmbench.spec.ffn import Gated
from llmbench.spec.mixer import AttentionKind, LatentAttention, Mixer
from llmbench.spec.model import ModelSpec
from llmbench.spec.position import Rope

__all__ = ["EXPERIMENT", "kinds", "largest_batch"]

LAYERS = 32
"""The number of layers of the model for which `largest batch` is computed, as in LLaMA-2-7B."""


class Size(NamedTuple):
    """The sizes that the four kinds of attention share. `kv_heads`: the KV heads of GQA. `latent`: the MLA of the
    chosen model, if it has MLA."""

    hidden: int
    heads: int
    head_dim: int
    kv_heads: int
    latent: LatentAttention | None = None

    @classmethod
    def usual(cls, heads: int, head_dim: int) -> Size:
        """Return the sizes of a preset. GQA has one KV head per four heads."""
        return cls(heads * head_dim, heads, head_dim, max(1, heads // 4))

    @classmethod
    def of_model(cls, spec: ModelSpec) -> Size:
        """Return the sizes of the model's first attention. Its KV heads are those of GQA, if it is GQA."""
        mixer = attention_of(with_attention(spec))
        usual = cls.usual(mixer.num_attention_heads, mixer.value_dim)
        own = mixer.num_key_value_heads
        return usual._replace(
            hidden=spec.hidden_size,
            kv_heads=own if 1 < own < usual.heads else usual.kv_heads,
            latent=mixer if isinstance(mixer, LatentAttention) else None,
        )


def kinds(size: Size) -> dict[str, Mixer]:
    """Return the four kinds of attention, by name.

    The MLA of the chosen model has its own widths. Otherwise, the widths of MLA have the ratios of DeepSeek-V2 (arXiv
    2405.04434, section 3.1.2): the latent is as wide as four heads, and the rotated part is half as wide as a head.
    """
    head_dim = size.head_dim
    latent = size.latent or LatentAttention(
        num_attention_heads=size.heads,
        kv_lora_rank=4 * head_dim,
        qk_nope_head_dim=head_dim,
        qk_rope_head_dim=head_dim // 2,
        v_head_dim=head_dim,
    )
    return {
        "MHA": heads(size.heads, size.heads, head_dim),
        "GQA": heads(size.heads, size.kv_heads, head_dim),
        "MQA": heads(size.heads, 1, head_dim),
        "MLA": replace(latent, sliding_window=None, indexer=None, positions=None),
    }


Shapes = tuple[tuple[int, int], ...]
GPU_PREFILLS: Shapes = ((1, 2048), (1, 8192), (1, 32768))
GPU_STEPS: Shapes = tuple(product((1, 16, 128), (4096, 16384)))
CPU_PREFILLS: Shapes = ((1, 512), (1, 1024))
CPU_STEPS: Shapes = tuple(product((1, 8), (1024, 4096)))
"""The (batch, context) pairs of each phase in the full preset."""


def groups(ask: Ask) -> list[Group]:
    """Return one group for each phase and each pair of batch and context."""
    if ask.on_gpu:
        size = Size.usual(32, 128)
        prefills, steps = (((1, 2048),), ((32, 4096),)) if ask.quick else (GPU_PREFILLS, GPU_STEPS)
    else:
        size = Size.usual(8, 32) if ask.quick else Size.usual(8, 64)
        prefills, steps = (((1, 64),), ((2, 128),)) if ask.quick else (CPU_PREFILLS, CPU_STEPS)
    if ask.shape.model is not None:
        size = Size.of_model(ask.shape.model)
    cases = [("prefill", shape) for shape in ask.pairs(prefills)] + [("decode", shape) for shape in ask.pairs(steps)]
    free = free_bytes(ask.device)  # The free memory is read once, so that all kinds of attention get the same value.
    return [_group(ask, free, size, phase, batch, context) for phase, (batch, context) in cases]


def _group(ask: Ask, free: int | None, size: Size, phase: str, batch: int, context: int) -> Group:
    impl = "flash" if ask.on_gpu else "sdpa"  # On a CPU, flash refuses MLA: the keys of MLA are wider than the values.
    piece = find_piece("block") if phase == "prefill" else STEP
    entries = []
    for name, mixer in kinds(size).items():
        spec = model_of(name, size.hidden, mixer=mixer)
        extra: dict[str, Scalar] = {
            "parameters": count_parameters(spec).components["attention"],
            "kv_bytes_per_token": kv_cache(spec, context, kv_dtype=ask.dtype).bytes_per_token,
            "largest_batch": largest_batch(ask, free, size.hidden, mixer, context),
            "tokens": batch * (context if phase == "prefill" else 1),
        }
        setting = ask.setting(spec, batch=batch, seq_len=context)
        entries.append(Entry(label=name, piece=piece, setting=setting, impl=impl, extra=extra))
    case: dict[str, Scalar] = {
        **ask.shape.case,
        "hidden_size": size.hidden,
        "heads": size.heads,
        "head_dim": size.head_dim,
        "dtype": ask.dtype,
        "phase": phase,
        "batch": batch,
        "context": context,
    }
    if ask.shape.model is not None:
        case["kv_heads"] = size.kv_heads
    return entry_group(entries, case=case, pace=ask.pace)


def largest_batch(ask: Ask, free: int | None, hidden: int, mixer: Mixer, context: int) -> int | None:
    """Return the largest number of sequences of `context` tokens that a whole model can serve at once in `free` bytes.

    Return None if `free` is unknown, and 0 if not even one sequence fits.
    """
    if free is None:
        return None
    spec = _served(ask.shape.model, hidden, mixer)
    weights = "fp32" if ask.dtype == "fp32" else "bf16"

    def fits(batch: int) -> bool:
        memory = inference_memory(spec, context, batch=batch, weights=weights, kv_dtype=ask.dtype)
        return memory.needed_bytes <= free

    most = 1
    while fits(most):
        most *= 2
    least = most // 2
    while most - least > 1:
        middle = (least + most) // 2
        least, most = (middle, most) if fits(middle) else (least, middle)
    return least


def _served(model: ModelSpec | None, hidden: int, mixer: Mixer) -> ModelSpec:
    """Return the whole model for which `largest batch` is computed. All its attention layers have this mixer."""
    if model is None:
        ffn = Gated(intermediate_size=round(8 * hidden / 3 / 64) * 64)
        return model_of("served", hidden, mixer=mixer, ffn=ffn, layers=LAYERS, vocab=32000)
    layers = {
        name: replace(layer, mixer=mixer) if isinstance(layer.mixer, AttentionKind) else layer
        for name, layer in model.layers.items()
    }
    return replace(model, layers=layers, positions=Rope(), published_parameters=None).check()


def smallest_cache(rows: Sequence[Row]) -> str:
    """Return a sentence on the kind of attention with the smallest cache per token."""
    sizes = {row.implementation: row.extra.get("kv_bytes_per_token") for row in rows}
    known = {name: size for name, size in sizes.items() if isinstance(size, int)}
    if "MHA" not in known:
        return ""
    least = min(known, key=lambda name: known[name])
    return f"{least} has the smallest cache: {known[least] / known['MHA']:.1%} of that of MHA."


EXPERIMENT = Experiment(
    question="how do MHA, GQA, MQA and MLA of equal hidden size differ in cache size, speed and largest batch?",
    groups=groups,
    baseline="MHA",
    columns=(
        Column("kv_bytes_per_token", "cache per token", "bytes", spare=0),
        Column("largest_batch", "largest batch", "count", spare=1),
        Column("parameters", "parameters", "count"),
    ),
    finding=smallest_cache,
    model_note="the attention has the sizes of the model's attention, without its windows, norms and biases",
    notes=(
        "parameters, cache per token: the values of the timed attention layer with its projections",
        "largest batch: the largest number of sequences of `context` tokens that the whole model can serve at once in"
        f" the free memory, with this attention in all layers. Without --model, the model has {LAYERS} layers with"
        " LLaMA's feed-forward. The number is computed, not measured",
    ),
)
