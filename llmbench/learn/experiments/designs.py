"""Designs of language models at one size, and the steps from one design to another. `ablate` trains them.

A design has one choice for each part of a model. All designs share the size: width, depth, heads, vocabulary, and one
matrix for embedding and head.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from typing import Any, Literal, NamedTuple, assert_never, get_args

from llmbench.errors import LLMBenchError, SpecError, unknown
from llmbench.spec.ffn import FFN, Dense, Gated, MoE, Router, SharedExperts
from llmbench.spec.mixer import Attention, AttentionKind, LatentAttention, branches
from llmbench.spec.model import Embedding, Layer, ModelSpec, Norm
from llmbench.spec.position import LearnedPositions, NoPositions, Positions, Rope, SinusoidalPositions

__all__ = [
    "DESIGNS",
    "QUESTIONS",
    "VIEWS",
    "Design",
    "Question",
    "Size",
    "Step",
    "View",
    "path",
    "questions",
    "size_of",
]

ROUNDING = 8
"""The width of a gated feed-forward is a multiple of this number."""
EXPERTS, PER_TOKEN = 8, 2
"""The routed experts of a mixture, and how many of them a token uses. In addition, it uses one shared expert."""
GROUP = 4
"""The most query heads that share a KV head: the number of LLaMA 3 8B (arXiv 2407.21783, table 3)."""


class Size(NamedTuple):
    """What all designs have in common. `context`: tokens per sequence."""

    hidden: int
    layers: int
    heads: int
    head_dim: int
    vocab: int
    context: int

    @property
    def kv_heads(self) -> int:
        """The KV heads of GQA: at least two, for at most `GROUP` query heads each. Raises SpecError."""
        groups = [group for group in range(GROUP, 1, -1) if self.heads % group == 0 and self.heads > group]
        if not groups:
            raise SpecError(
                f"{self.heads} query heads cannot share KV heads in groups of 2 to {GROUP}",
                hint="use a model with another number of heads, for example --set num_attention_heads=4",
            )
        return self.heads // groups[0]

    @property
    def gated(self) -> int:
        """The width of a feed-forward with three matrices that has the parameters of one with two: 8/3 · hidden."""
        return ROUNDING * max(1, round(8 * self.hidden / 3 / ROUNDING))

    @property
    def expert(self) -> int:
        """The width of an expert. The experts of a token together are as wide as the gated feed-forward."""
        return ROUNDING * max(1, round(self.gated / (PER_TOKEN + 1) / ROUNDING))


def size_of(spec: ModelSpec, *, vocab: int, context: int) -> Size:
    """Return the width, the depth and the heads of a model. Raises SpecError for a model without attention."""
    mixers = (mixer for layer in spec.layers.values() for mixer in branches(layer.mixer))
    attention = next((each.ordinary for each in mixers if isinstance(each, AttentionKind)), None)
    if attention is None:
        raise SpecError(f"{spec.name} has no attention, so it gives no number of heads", hint="use another model")
    heads, head_dim = attention.num_attention_heads, attention.head_dim
    return Size(spec.hidden_size, spec.num_hidden_layers, heads, head_dim, vocab, context)


class Design(NamedTuple):
    """One choice for each part. A path changes the parts in this order.

    - `norm`: the type of all norms. LayerNorm has a bias.
    - `placement`: pre is before each sublayer, post is after each residual sum (without a norm before the head).
    - `biases`: which linear layers have a bias.
    - `heads`: MHA has as many KV heads as query heads, GQA fewer. MLA stores a latent vector (arXiv 2405.04434).
    - `ffn`: ReLU, GELU and SiLU have two matrices and the width 4 · hidden. SwiGLU has three matrices (arXiv
      2002.05202), and MoE has experts with SwiGLU, one of which is shared (arXiv 2401.06066).
    """

    norm: Literal["LayerNorm", "RMSNorm", "none"]
    placement: Literal["pre", "post"]
    biases: Literal["all", "feed-forward", "none"]
    positions: Literal["learned", "sinusoidal", "RoPE", "none"]
    heads: Literal["MHA", "GQA", "MLA"]
    ffn: Literal["ReLU", "GELU", "SiLU", "SwiGLU", "MoE"]

    def spec(self, size: Size, name: str = "design") -> ModelSpec:
        """Return the model of this design. Raises SpecError if the size does not allow it."""
        normed = self.norm != "none"
        sinusoidal = self.positions == "sinusoidal"
        layer = Layer(mixer=self._mixer(size), ffn=self._ffn(size), placement=self.placement if normed else "none")
        spec = ModelSpec(
            name=name,
            source="llmbench ablate",
            vocab_size=size.vocab,
            hidden_size=size.hidden,
            tie_word_embeddings=True,
            max_position_embeddings=size.context,
            positions=self._positions(size),
            norm=Norm(kind="layernorm" if self.norm == "LayerNorm" else "rmsnorm", bias=self.norm == "LayerNorm"),
            final_norm=normed and self.placement == "pre",
            # arXiv 1706.03762, section 3.4: otherwise small embeddings would vanish beside sines and cosines
            embedding=Embedding(scale=size.hidden**0.5 if sinusoidal else 1.0),
            layers={"block": layer},
            pattern=f"{size.layers}*block",
        )
        return spec.check()

    def _positions(self, size: Size) -> Positions:
        match self.positions:
            case "learned":
                return LearnedPositions(num_positions=size.context)
            case "sinusoidal":
                return SinusoidalPositions()
            case "RoPE":
                return Rope()
            case "none":
                return NoPositions()
            case _:
                assert_never(self.positions)

    def _mixer(self, size: Size) -> Attention | LatentAttention:
        bias = self.biases == "all"
        match self.heads:
            case "MHA" | "GQA":
                return Attention(
                    num_attention_heads=size.heads,
                    num_key_value_heads=size.heads if self.heads == "MHA" else size.kv_heads,
                    head_dim=size.head_dim,
                    qkv_bias=bias,
                    output_bias=bias,
                )
            case "MLA":
                # DeepSeek-V2 has a latent vector of 4 heads' width and a rotated key of half a head's width. With few
                # heads, the latent vector has half the width of all heads, because it would compress nothing otherwise.
                return LatentAttention(
                    num_attention_heads=size.heads,
                    kv_lora_rank=max(1, min(8, size.heads) * size.head_dim // 2),
                    qk_nope_head_dim=size.head_dim,
                    qk_rope_head_dim=size.head_dim // 4 * 2 if self.positions == "RoPE" else 0,
                    v_head_dim=size.head_dim,
                    latent_bias=bias,
                    output_bias=bias,
                )
            case _:
                assert_never(self.heads)

    def _ffn(self, size: Size) -> FFN:
        bias = self.biases != "none"
        match self.ffn:
            case "ReLU":
                return Dense(intermediate_size=4 * size.hidden, activation="relu", bias=bias)
            case "GELU":
                return Dense(intermediate_size=4 * size.hidden, activation="gelu", bias=bias)
            case "SiLU":
                return Dense(intermediate_size=4 * size.hidden, activation="silu", bias=bias)
            case "SwiGLU":
                return Gated(intermediate_size=size.gated, bias=bias)
            case "MoE":
                return MoE(
                    num_experts=EXPERTS,
                    num_experts_per_tok=PER_TOKEN,
                    intermediate_size=size.expert,
                    bias=bias,
                    router=Router(scores="softmax_topk"),
                    shared=SharedExperts(intermediate_size=size.expert, bias=bias),
                )
            case _:
                assert_never(self.ffn)


DESIGNS: dict[str, Design] = {
    "transformer": Design("LayerNorm", "post", "feed-forward", "sinusoidal", "MHA", "ReLU"),
    "gpt2": Design("LayerNorm", "pre", "all", "learned", "MHA", "GELU"),
    "cs336": Design("RMSNorm", "pre", "none", "RoPE", "MHA", "SwiGLU"),
    "llama": Design("RMSNorm", "pre", "none", "RoPE", "GQA", "SwiGLU"),
    "deepseek": Design("RMSNorm", "pre", "none", "RoPE", "MLA", "MoE"),
}
"""The decoder of the original Transformer (arXiv 1706.03762), GPT-2, the model of Stanford's course CS336 (assignment
1, which is LLaMA with MHA), LLaMA 3, and DeepSeek-V2 (arXiv 2405.04434)."""


class Question(NamedTuple):
    """A single change of the CS336 model that teachers set as an exercise (assignment 1, section 7)."""

    about: str
    changes: Mapping[str, Any]


QUESTIONS: dict[str, Question] = {
    "layer_norm_ablation": Question("RMSNorm → no norm", {"norm": "none"}),
    "pre_norm_ablation": Question("pre-norm → post-norm", {"placement": "post"}),
    "no_pos_emb": Question("RoPE → no positions", {"positions": "none"}),
    "swiglu_ablation": Question("SwiGLU → SiLU without a gate", {"ffn": "SiLU"}),
}

View = Literal["cumulative", "added", "removed", "question"]
VIEWS: tuple[View, ...] = get_args(View)[:3]
"""The views of a path. cumulative: each step keeps the steps before it. added: one step is added to the first design.
removed: one step is undone in the last design."""


class Step(NamedTuple):
    """A design of a view, and the design that it is compared with. None: it is the first one of its view."""

    view: View
    name: str
    about: str
    design: Design
    before: Design | None


def path(names: Sequence[str], views: Sequence[View] = VIEWS) -> list[Step]:
    """Return the steps of the views, from the first named design to the last one through those between them.

    Raises UnknownNameError, and LLMBenchError if two designs that follow each other are equal.
    """
    designs = [_design(name) for name in names]
    changes = [change for before, after in pairwise(designs) for change in _changes(before, after)]
    if any(before == after for before, after in pairwise(designs)) or not changes:
        raise LLMBenchError("a path needs at least two different designs", hint=f"choose from {', '.join(DESIGNS)}")
    return [step for view in views for step in _view(view, names, changes)]


def _view(view: View, names: Sequence[str], changes: Sequence[tuple[str, Any, Any]]) -> Iterator[Step]:
    first, last = DESIGNS[names[0]], DESIGNS[names[-1]]
    start, name = (last, names[-1]) if view == "removed" else (first, names[0])
    yield Step(view, name, "", start, None)
    design = start
    for part, old, new in changes:
        if view == "cumulative":
            before, design = design, design._replace(**{part: new})
            yield Step(view, part, _about(old, new), design, before)
        elif view == "added" and getattr(first, part) != new:
            yield Step(
                view, f"{name} + {part}", _about(getattr(first, part), new), first._replace(**{part: new}), first
            )
        elif view == "removed" and getattr(last, part) == new:
            yield Step(view, f"{name} − {part}", _about(new, old), last._replace(**{part: old}), last)


def questions(names: Sequence[str]) -> list[Step]:
    """Return the model of CS336, and one step for each named question. Raises UnknownNameError."""
    for name in names:
        if name not in QUESTIONS:
            raise unknown("question", name, list(QUESTIONS))
    base = DESIGNS["cs336"]
    steps = [Step("question", "cs336", "", base, None)]
    for name in dict.fromkeys(names):
        question = QUESTIONS[name]
        steps.append(Step("question", name, question.about, base._replace(**question.changes), base))
    return steps


def _design(name: str) -> Design:
    if name not in DESIGNS:
        raise unknown("design", name, list(DESIGNS))
    return DESIGNS[name]


def _changes(before: Design, after: Design) -> Iterator[tuple[str, Any, Any]]:
    """Yield each part that differs, with its choice before and after."""
    for part, old, new in zip(Design._fields, before, after, strict=True):
        if old != new:
            yield part, old, new


def _about(old: str, new: str) -> str:
    return f"{old} → {new}"
