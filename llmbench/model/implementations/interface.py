"""The interface of an implementation: its functions with their arguments, and its traits for the op table.

B batch, N query heads, K KV heads, S query length, T key length, H head dim, Hv value head dim, V vocabulary size, D
hidden size, F intermediate size, E experts, k experts per token, t tokens, C latent width, R rotary dims.
"""

from __future__ import annotations

from typing import Any, Literal, NamedTuple, Protocol

import torch
from torch import Tensor

from llmbench.sizing.workload import Phase
from llmbench.spec.ffn import Activation, MoE, Router
from llmbench.spec.mixer import AttentionKind, Mixer, branches
from llmbench.spec.model import ModelSpec, Norm


class Mask(NamedTuple):
    """The keys that each query sees. `queries` [B, S] and `keys` [B, T] are positions; a negative key position marks an
    empty slot.

    `plain`: queries and keys have the same positions, from 0 and without gaps. A kernel may then build the mask itself.
    """

    queries: Tensor
    keys: Tensor
    causal: bool
    window: int | None
    chunk: int | None
    plain: bool

    def allowed(self) -> Tensor:
        """The mask as booleans [B, 1, S, T]: true for each pair of a query and a key that it sees."""
        return self.sees(self.queries[:, None, :, None], self.keys[:, None, None, :])

    def sees(self, query: Tensor, key: Tensor) -> Tensor:
        """Whether a query at position `query` sees a key at position `key`."""
        seen = key >= 0
        if self.causal:
            seen = seen & (key <= query)
            if self.window is not None:
                seen = seen & (key > query - self.window)
            if self.chunk is not None:
                seen = seen & (key // self.chunk == query // self.chunk)
        elif self.window is not None:
            seen = seen & ((key - query).abs() <= self.window // 2)
        return seen

    @property
    def everything(self) -> bool:
        """Whether every query sees every key."""
        return self.plain and not self.causal and self.window is None

    @property
    def only_causal(self) -> bool:
        """Whether the mask is the plain lower triangle. A window or a chunk at least as long as all keys hides no
        key."""
        length = self.keys.shape[1]
        return self.plain and self.causal and min(self.window or length, self.chunk or length) >= length


class Slots(NamedTuple):
    """The cache of one layer in place: keys [B, K, T, H] and values [B, K, T, Hv].

    A paged cache has pages [P, page size, K, H] and a page `table` [B, pages]. Quantised rows have scales [...,
    segments], one per segment of a row. Slot t of a sequence stores the token at position t. In a ring, it stores the
    last token whose position modulo T is t. Slots past `lengths` [B] are undefined.
    """

    keys: Tensor
    values: Tensor
    key_scales: Tensor | None
    value_scales: Tensor | None
    lengths: Tensor
    table: Tensor | None = None
    ring: bool = False


class Seen(Protocol):
    """Keys [B, K, T, H] and values [B, K, T, Hv] that queries see, and the mask.

    Keys and values of a cache are gathered on access. `slots` gives them in place, for kernels that read the cache
    directly.
    """

    @property
    def k(self) -> Tensor: ...
    @property
    def v(self) -> Tensor: ...
    @property
    def mask(self) -> Mask: ...
    @property
    def slots(self) -> Slots | None: ...


class Given(NamedTuple):
    """Keys and values as tensors, without a cache."""

    k: Tensor
    v: Tensor
    mask: Mask
    slots: None = None


class Scores(NamedTuple):
    """The changes that attention applies to its scores: a scale, a soft cap and additions.

    sinks: one score per head [N] for "no key". slopes: ALiBi's slope per head [N], times the distance. bias: [B or 1,
    N, S, T], added to the scores.
    """

    scale: float
    soft_cap: float | None = None
    sinks: Tensor | None = None
    slopes: Tensor | None = None
    bias: Tensor | None = None

    def added(self, mask: Mask) -> Tensor | None:
        """The slopes and the bias as one bias [B or 1, N, S, T]. None if the scores have neither."""
        if self.slopes is None:
            return self.bias
        distance = mask.keys[:, None, None, :] - mask.queries[:, None, :, None]
        alibi = self.slopes[None, :, None, None] * distance
        return alibi if self.bias is None else alibi + self.bias


class Attend(Protocol):
    """Attention: softmax(q kᵀ) v for queries q [B, N, S, H]. Returns [B, N, S, Hv]."""

    def __call__(self, q: Tensor, seen: Seen, scores: Scores) -> Tensor: ...


class AttendLatent(Protocol):
    """Absorbed latent attention with q_latent [B, N, S, C] and q_rope [B, N, S, R]. Returns [B, N, S, C].

    The keys of `seen` are cache rows [B, 1, T, C + R]. The first C numbers of a row are also its value.
    """

    def __call__(self, q_latent: Tensor, q_rope: Tensor, seen: Seen, scores: Scores) -> Tensor: ...


class Normalise(Protocol):
    """The norm of x [..., W], or of x + residual. Also returns the input of the norm: x or the sum.

    Weight and bias are [W], or [N, W] for x [..., N, W].
    """

    def __call__(
        self, x: Tensor, residual: Tensor | None, weight: Tensor | None, bias: Tensor | None, norm: Norm
    ) -> tuple[Tensor, Tensor]: ...


class Rotate(Protocol):
    """Rotate the first R dims of each head of q [B, N, S, H] and k [B, K, S, H] by cos and sin [B, 1, S, R/2]."""

    def __call__(
        self, q: Tensor, k: Tensor, tables: tuple[Tensor, Tensor], *, interleaved: bool
    ) -> tuple[Tensor, Tensor]: ...


class GLU(Protocol):
    """The gated activation: act(gate) · up, all [..., F]."""

    def __call__(self, gate: Tensor, up: Tensor, name: Activation) -> Tensor: ...


class Route(Protocol):
    """The weights [t, k] and indices [t, k] of the chosen experts, from fp32 logits [t, E].

    `correction` [E] is added to the scores for the choice, but does not change the weights.
    """

    def __call__(
        self, logits: Tensor, top_k: int, correction: Tensor | None, router: Router
    ) -> tuple[Tensor, Tensor]: ...


class ExpertWeights(NamedTuple):
    """The weights of all experts: gate and up [E, F, D], down [E, D, F], their biases [E, F], [E, F] and [E, D].

    A tensor that the mixture lacks is None.
    """

    gate: Tensor | None
    up: Tensor
    down: Tensor
    gate_bias: Tensor | None
    up_bias: Tensor | None
    down_bias: Tensor | None


class Experts(Protocol):
    """The weighted sum [t, D] of the outputs of the experts `chosen` [t, k] for x [t, D].

    An index of E or higher returns the token unchanged.
    """

    def __call__(self, x: Tensor, weights: Tensor, chosen: Tensor, experts: ExpertWeights, moe: MoE) -> Tensor: ...


class Loss(Protocol):
    """The mean cross-entropy of x [t, D] with the vocabulary matrix `weight` [V, D], for targets [t].

    A target of -100 is ignored. Logits are multiplied by `scale`, then capped.
    """

    def __call__(
        self, x: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor, scale: float, soft_cap: float | None
    ) -> Tensor: ...


class Traits(NamedTuple):
    """The properties of an implementation from which the op table counts FLOPs, bytes and memory.

    * `materialises_scores`: attention writes all scores to memory, and also computes the scores of masked pairs.
    * `fused_kernels`: norms, rotations, gates, experts and the loss run as one kernel each.
    * `triton`: our Triton kernels run on a GPU. On a CPU, torch's kernels or Triton's interpreter replace them.
    * `dense_mask`: on which devices attention stores a mask other than the causal one as a tensor of all pairs.
    * `scores_for_uneven_widths_on_cpu`: on a CPU, attention materialises its scores if keys and values have different
      widths, because torch has no other kernel for them.
    """

    materialises_scores: bool = False
    fused_kernels: bool = False
    triton: bool = False
    dense_mask: Literal["never", "on CPU", "always"] = "never"
    scores_for_uneven_widths_on_cpu: bool = False

    @property
    def attention(self) -> Literal["standard", "flash"]:
        """The op table's name for this attention: `standard` materialises the scores, `flash` does not."""
        return "standard" if self.materialises_scores else "flash"

    def computed(self, phase: Phase) -> dict[str, Any]:
        """The Workload options for the ops that an implementation computes.

        In decoding, new tokens see every key in the cache, so there are no masked pairs.
        """
        return {
            "attention": self.attention,
            "masked_pairs": self.materialises_scores and phase != "decode",
            "kernels": "fused" if self.fused_kernels else "eager",
        }

    def temporaries(self, spec: ModelSpec, device: torch.device) -> dict[str, Any]:
        """The Workload options for the temporaries that torch allocates on this device.

        They are dense masks, the intermediate results of a norm on a CPU, and scores if torch has no kernel without
        them.
        """
        on_cpu = device.type == "cpu"
        options: dict[str, Any] = {
            "dense_mask": self.dense_mask == "always" or (self.dense_mask == "on CPU" and on_cpu),
            "on_cpu": on_cpu,
        }
        mixers = [mixer for layer in spec.layers.values() for mixer in branches(layer.mixer)]
        if self.scores_for_uneven_widths_on_cpu and on_cpu and any(_uneven_widths(mixer) for mixer in mixers):
            options["attention"] = "standard"
        return options


def _uneven_widths(mixer: Mixer) -> bool:
    """Whether the keys and values of an attention have different widths."""
    return isinstance(mixer, AttentionKind) and (mixer.absorbs or mixer.value_dim != mixer.key_dim)


class Implementation(NamedTuple):
    """A way to compute a model: one function per step, and its traits.

    `experts` None: experts run one after another, with `glu`. `loss` None: the loss is computed from materialised
    logits. `unavailable`: the reason why it cannot run here; empty if it can.
    """

    name: str
    traits: Traits
    attend: Attend
    attend_latent: AttendLatent
    norm: Normalise
    rotate: Rotate
    glu: GLU
    route: Route
    experts: Experts | None = None
    loss: Loss | None = None
    unavailable: str = ""
