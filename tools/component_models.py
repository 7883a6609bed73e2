"""Write the tables of docs/components/. The table of a page lists, for each feature, the bundled models with this
feature. The tool writes the table between the two markers of the page.

    python tools/component_models.py            # write the tables
    python tools/component_models.py --check    # compare; exit 1 if a table is out of date
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import TypeVar, get_args

from llmbench.spec.catalog import bundled_models, load_bundled
from llmbench.spec.ffn import Dense, Gated, MoE
from llmbench.spec.mixer import (
    Attention,
    AttentionKind,
    CompressedAttention,
    LatentAttention,
    Recurrent,
    RecurrentKind,
    SingleMixer,
    branches,
)
from llmbench.spec.model import Layer, ModelSpec
from llmbench.spec.position import (
    Alibi,
    LearnedPositions,
    NoPositions,
    Positions,
    RelativeBias,
    Rope,
    SinusoidalPositions,
)

FOLDER = Path(__file__).parent.parent / "docs" / "components"
MARKED = re.compile(r"(<!-- models: written by tools/component_models\.py -->\n).*?(<!-- end -->)", re.DOTALL)

Kind = TypeVar("Kind")
Uses = Callable[[ModelSpec], bool]


def layers(spec: ModelSpec) -> list[Layer]:
    """Return all kinds of layers of a model, including those of its encoder."""
    return [*spec.layers.values(), *(spec.encoder.layers.values() if spec.encoder is not None else ())]


def mixers(spec: ModelSpec, kind: type[Kind]) -> Iterator[Kind]:
    """Return all mixers of a model that have the type `kind`."""
    return (mixer for layer in layers(spec) for mixer in branches(layer.mixer) if isinstance(mixer, kind))


def positions(spec: ModelSpec) -> list[Positions]:
    """Return the position encodings of a model: the encoding of the whole model and that of each attention."""
    singles = [mixer for layer in layers(spec) for mixer in branches(layer.mixer)]
    attentions = [mixer for mixer in singles if isinstance(mixer, AttentionKind)]
    return [spec.positions, *(spec.positions_of(mixer) for mixer in attentions)]


def has_mixer(kind: type[Kind], also: Callable[[Kind], object] = lambda mixer: True) -> Uses:
    """Return a test for a model: does it have a mixer of type `kind` for which `also` returns true?"""
    return lambda spec: any(also(mixer) for mixer in mixers(spec, kind))


def has_ffn(kind: type[Kind], also: Callable[[Kind], object] = lambda ffn: True) -> Uses:
    """Return a test for a model: does it have a feed-forward of type `kind` for which `also` returns true?"""
    return lambda spec: any(isinstance(layer.ffn, kind) and also(layer.ffn) for layer in layers(spec))


def has_rope(also: Callable[[Rope], object]) -> Uses:
    """Return a test for a model: does it have a rotary encoding for which `also` returns true?"""
    return lambda spec: any(isinstance(encoding, Rope) and also(encoding) for encoding in positions(spec))


def has_positions(kind: type[Positions]) -> Uses:
    """Return a test for a model: does it have a position encoding of type `kind`?"""
    return lambda spec: any(isinstance(encoding, kind) for encoding in positions(spec))


def has_norm(kind: str, *, bias: bool = False, weight: bool = True) -> Uses:
    """Return a test for a model: does its norm have this kind, this bias and this weight?"""
    return lambda spec: (spec.norm.kind, spec.norm.bias, spec.norm.weight) == (kind, bias, weight)


def placed(placement: str) -> Uses:
    """Return a test for a model: does it have a layer with this placement of norms?"""
    return lambda spec: any(layer.placement == placement for layer in layers(spec))


def scaled(kind: str) -> Uses:
    """Return a test for a model: does it have a rotary encoding with this kind of scaling?"""
    return has_rope(lambda rope: rope.scaling is not None and rope.scaling.kind == kind)


OTHER_ATTENTIONS = [
    kind
    for kind in get_args(SingleMixer)
    if issubclass(kind, AttentionKind) and kind not in (Attention, LatentAttention, CompressedAttention)
]
"""The kinds of attention that have no rows of their own below."""

PAGES: dict[str, dict[str, Uses]] = {
    "positions": {
        "RoPE": has_rope(lambda rope: True),
        "RoPE on a part of the head": has_rope(lambda rope: rope.rotary_dim is not None),
        "RoPE on neighbouring pairs (`interleaved`)": has_rope(lambda rope: rope.interleaved),
        "scaling `linear`": scaled("linear"),
        "scaling `dynamic`": scaled("dynamic"),
        "scaling `yarn`": scaled("yarn"),
        "scaling `llama3`": scaled("llama3"),
        "scaling `longrope`": scaled("longrope"),
        "learned table": has_positions(LearnedPositions),
        "sinusoidal table": has_positions(SinusoidalPositions),
        "ALiBi": has_positions(Alibi),
        "relative bias": has_positions(RelativeBias),
        "a position encoding in some layers, none in others": lambda spec: (
            len({isinstance(spec.positions_of(mixer), NoPositions) for mixer in mixers(spec, Attention)}) > 1
        ),
        "no position encoding": lambda spec: all(isinstance(encoding, NoPositions) for encoding in positions(spec)),
    },
    "norms": {
        "RMSNorm": has_norm("rmsnorm"),
        "RMSNorm, weight + 1": lambda spec: spec.norm.unit_offset,
        "LayerNorm": has_norm("layernorm", bias=True),
        "LayerNorm without bias": has_norm("layernorm"),
        "LayerNorm without weight and bias": has_norm("layernorm", weight=False),
        **{f"placement `{name}`": placed(name) for name in ("pre", "post", "output", "sandwich", "parallel")},
        "placement `parallel_two`": placed("parallel_two"),
    },
    "attention": {
        **{kind.label: has_mixer(kind) for kind in OTHER_ATTENTIONS},
        "MHA": has_mixer(Attention, lambda mixer: mixer.label == "MHA"),
        "GQA": has_mixer(Attention, lambda mixer: mixer.label == "GQA"),
        "MQA": has_mixer(Attention, lambda mixer: mixer.label == "MQA"),
        "`sliding_window`": has_mixer(Attention, lambda mixer: mixer.sliding_window),
        "`attention_chunk_size`": has_mixer(Attention, lambda mixer: mixer.attention_chunk_size),
        "windowed and global layers": lambda spec: len({mixer.span is None for mixer in mixers(spec, Attention)}) > 1,
        "`qk_norm`": has_mixer(Attention, lambda mixer: mixer.qk_norm),
        "`logit_soft_cap`": has_mixer(Attention, lambda mixer: mixer.logit_soft_cap),
        "`sinks`": has_mixer(Attention, lambda mixer: mixer.sinks),
        "`output_gate`": has_mixer(Attention, lambda mixer: mixer.output_gate),
        "`qkv_bias`": has_mixer(Attention, lambda mixer: mixer.qkv_bias),
        "`clip_qkv`": has_mixer(Attention, lambda mixer: mixer.clip_qkv),
        "`temperature`": has_mixer(Attention, lambda mixer: mixer.temperature),
        "bidirectional (`causal = false`)": has_mixer(Attention, lambda mixer: not mixer.causal),
    },
    "latent-attention": {
        "latent attention": has_mixer(LatentAttention),
        "full-rank queries (no `q_lora_rank`)": has_mixer(LatentAttention, lambda mixer: mixer.q_lora_rank is None),
        "`indexer`": has_mixer(LatentAttention, lambda mixer: mixer.indexer),
        CompressedAttention.label: has_mixer(CompressedAttention),
    },
    "feed-forward": {
        "dense, ReLU": has_ffn(Dense, lambda ffn: ffn.activation == "relu"),
        "dense, ReLU²": has_ffn(Dense, lambda ffn: ffn.activation == "relu2"),
        "dense, GELU": has_ffn(Dense, lambda ffn: ffn.activation == "gelu"),
        "dense, GELU (tanh)": has_ffn(Dense, lambda ffn: ffn.activation == "gelu_tanh"),
        "SwiGLU": has_ffn(Gated, lambda ffn: ffn.activation == "silu"),
        "GEGLU": has_ffn(Gated, lambda ffn: ffn.activation in ("gelu", "gelu_tanh")),
        "biases": lambda spec: any(isinstance(layer.ffn, (Dense, Gated)) and layer.ffn.bias for layer in layers(spec)),
    },
    "mixture-of-experts": {
        "scores `softmax`": has_ffn(MoE, lambda ffn: ffn.router.scores == "softmax"),
        "scores `softmax_topk`": has_ffn(MoE, lambda ffn: ffn.router.scores == "softmax_topk"),
        "scores `sigmoid`": has_ffn(MoE, lambda ffn: ffn.router.scores == "sigmoid"),
        "scores `sparsemixer`": has_ffn(MoE, lambda ffn: ffn.router.scores == "sparsemixer"),
        "one expert per token": has_ffn(MoE, lambda ffn: ffn.num_experts_per_tok == 1),
        "`shared` experts": has_ffn(MoE, lambda ffn: ffn.shared),
        "`correction` (a bias in the choice of experts)": has_ffn(MoE, lambda ffn: ffn.router.correction),
        "groups (`n_group`)": has_ffn(MoE, lambda ffn: ffn.router.n_group > 1),
        "routing weights on the input (`on_input`)": has_ffn(MoE, lambda ffn: ffn.router.on_input),
        "limited capacity": has_ffn(MoE, lambda ffn: ffn.capacity_factor or ffn.expert_capacity),
        "expert layers and dense layers": lambda spec: (
            spec.is_moe and any(isinstance(layer.ffn, (Dense, Gated)) for layer in layers(spec))
        ),
    },
    "recurrent-mixers": {
        **{kind.label: has_mixer(kind) for kind in get_args(Recurrent)},
        "hybrids with attention": lambda spec: has_mixer(AttentionKind)(spec) and has_mixer(RecurrentKind)(spec),
    },
    "embeddings-and-heads": {
        "tied head": lambda spec: spec.tie_word_embeddings,
        "untied head": lambda spec: not spec.tie_word_embeddings,
        "`embedding.scale`": lambda spec: spec.embedding.scale != 1.0,
        "`embedding.norm`": lambda spec: spec.embedding.norm,
        "`embedding.size`": lambda spec: spec.embedding.size is not None,
        "`embedding.token_types`": lambda spec: spec.embedding.token_types > 0,
        "`head.bias`": lambda spec: spec.head.bias,
        "`head.transform`": lambda spec: spec.head.transform is not None,
        "`head.scale`": lambda spec: spec.head.scale != 1.0,
        "`head.soft_cap`": lambda spec: spec.head.soft_cap is not None,
    },
    "encoders": {
        "encoder only": lambda spec: spec.encoder is None and not spec.decodes,
        "encoder and decoder": lambda spec: spec.encoder is not None,
    },
}
"""The features that each page lists. Each feature has a test that tells whether a model uses it."""


@cache
def specs() -> tuple[ModelSpec, ...]:
    """Return every bundled model."""
    return tuple(load_bundled(name) for name in bundled_models())


def table(page: str) -> str:
    """Return the table of a page: each feature with the models that use it. Features that no model uses are left
    out."""
    lines = ["| feature | number | models |", "|---|---:|---|"]
    for feature, uses in PAGES[page].items():
        names = [spec.name for spec in specs() if uses(spec)]
        if names:
            lines.append(f"| {feature} | {len(names)} | {', '.join(names)} |")
    return "\n".join(lines) + "\n"


def current(path: Path) -> str:
    """Return the text of a page with an up-to-date table."""
    return MARKED.sub(lambda match: match[1] + table(path.stem) + match[2], path.read_text(encoding="utf-8"))


def main() -> int:
    """Write all pages. With `--check`, only compare them, and return 1 if a page is out of date."""
    stale = 0
    for path in (FOLDER / f"{page}.md" for page in PAGES):
        text = current(path)
        if text == path.read_text(encoding="utf-8"):
            continue
        stale += 1
        if "--check" in sys.argv[1:]:
            print(f"{path} is out of date: run python tools/component_models.py", file=sys.stderr)
        else:
            path.write_text(text, encoding="utf-8")
    return 1 if stale and "--check" in sys.argv[1:] else 0


if __name__ == "__main__":
    sys.exit(main())
