"""The interface of an implementation: its functions, their arguments, and its traits for the op table.

B batch, N query heads, K KV heads, S query length, T key length, H head dim, V vocabulary, D hidden, F intermediate,
E experts, k experts a token, t tokens, C latent width, R rotated dims.
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
    """Which keys a query sees. Positions are integers, [B, S] and [B, T]; a key at a negative position is empty.

    `plain`: queries and keys have the same positions, from 0 and without gaps. A kernel may then build the mask itself.
    """

    queries: Tensor
    keys: Tensor
    causal: bool
    window: int | None
    chunk: int | None
    plain: bool

    def allowed(self) -> Tensor:
        """Boolean [B, 1, S, T]: the pairs that are scored."""
        return self.sees(self.queries[:, None, :, None], self.keys[:, None, None, :])

    def sees(self, query: Tensor, key: Tensor) -> Tensor:
        """Whether a query at one position sees a key at another."""
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
        """Whether the mask is the plain lower triangle. A window or a chunk as long as all keys hides none."""
        length = self.keys.shape[1]
        return self.plain and self.causal and min(self.window or length, self.chunk or length) >= length


class Slots(NamedTuple):
    """A layer's cache in memory: keys [B, K, T, H] and values, or pages [P, page, K, H] with a page table [B, pages].
    Quantised rows have scales, one per segment of the row: [..., segments]. Slot t of a sequence stores the token at
    position t; in a ring it stores the last token whose position is t modulo T. Slots past `lengths` [B] are
    undefined."""

    keys: Tensor
    values: Tensor
    key_scales: Tensor | None
    value_scales: Tensor | None
    lengths: Tensor
    table: Tensor | None = None
    ring: bool = False


class Seen(Protocol):
    """Keys [B, K, T, H], values [B, K, T, Hv] and the mask. Keys and values in a cache are gathered on access; `slots`
    is their place in memory, for kernels that read the cache directly."""

    @property
    def k(self) -> Tensor: ...
    @property
    def v(self) -> Tensor: ...
    @property
    def mask(self) -> Mask: ...
    @property
    def slots(self) -> Slots | None: ...


class Given(NamedTuple):
    """Keys and values as tensors, outside any cache."""

    k: Tensor
    v: Tensor
    mask: Mask
    slots: None = None


class Scores(NamedTuple):
    """What attention does to its scores: the scale, a soft cap, sinks [N], ALiBi's slopes [N] per distance to a key, an
    added bias [B or 1, N, S, T]."""

    scale: float
    soft_cap: float | None = None
    sinks: Tensor | None = None
    slopes: Tensor | None = None
    bias: Tensor | None = None

    def added(self, mask: Mask) -> Tensor | None:
        """Slopes and bias as one bias; None without either."""
        if self.slopes is None:
            return self.bias
        distance = mask.keys[:, None, None, :] - mask.queries[:, None, :, None]
        alibi = self.slopes[None, :, None, None] * distance
        return alibi if self.bias is None else alibi + self.bias


class Attend(Protocol):
    """softmax(q kᵀ) v for q [B, N, S, H]; the result is [B, N, S, Hv]."""

    def __call__(self, q: Tensor, seen: Seen, scores: Scores) -> Tensor: ...


class AttendLatent(Protocol):
    """Absorbed latent attention of q_latent [B, N, S, C] and q_rope [B, N, S, R] on rows [B, 1, T, C + R]. The rows are
    the keys of `seen`; their first C numbers are the values. The result is [B, N, S, C]."""

    def __call__(self, q_latent: Tensor, q_rope: Tensor, seen: Seen, scores: Scores) -> Tensor: ...


class Normalise(Protocol):
    """The norm of x [..., W], or of x + residual; and its input, the sum included. Weight and bias are [W], or [N, W]
    for x [..., N, W]."""

    def __call__(
        self, x: Tensor, residual: Tensor | None, weight: Tensor | None, bias: Tensor | None, norm: Norm
    ) -> tuple[Tensor, Tensor]: ...


class Rotate(Protocol):
    """q [B, N, S, H] and k [B, K, S, H] with the first R dims of each head rotated by cos and sin [B, 1, S, R/2]."""

    def __call__(
        self, q: Tensor, k: Tensor, tables: tuple[Tensor, Tensor], *, interleaved: bool
    ) -> tuple[Tensor, Tensor]: ...


class GLU(Protocol):
    """act(gate) · up, all [..., F]."""

    def __call__(self, gate: Tensor, up: Tensor, name: Activation) -> Tensor: ...


class Route(Protocol):
    """Weights [t, k] and experts [t, k] for logits [t, E] in fp32. `correction` [E] is added for the choice only."""

    def __call__(
        self, logits: Tensor, top_k: int, correction: Tensor | None, router: Router
    ) -> tuple[Tensor, Tensor]: ...


class ExpertWeights(NamedTuple):
    """gate and up [E, F, D], down [E, D, F], biases [E, F], [E, F], [E, D]; None for a tensor that the mixture
    lacks."""

    gate: Tensor | None
    up: Tensor
    down: Tensor
    gate_bias: Tensor | None
    up_bias: Tensor | None
    down_bias: Tensor | None


class Experts(Protocol):
    """The weighted sum [t, D] of the chosen experts' results, experts [t, k] on x [t, D]. An expert numbered E or
    higher returns the token unchanged."""

    def __call__(self, x: Tensor, weights: Tensor, chosen: Tensor, experts: ExpertWeights, moe: MoE) -> Tensor: ...


class Loss(Protocol):
    """The mean cross-entropy of tokens x [t, D] over `weight` [V, D] for targets [t]; a target of -100 is ignored.
    Logits are multiplied by `scale`, then capped."""

    def __call__(
        self, x: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor, scale: float, soft_cap: float | None
    ) -> Tensor: ...


class Traits(NamedTuple):
    """What an implementation computes and materialises. The op table needs it to count FLOPs, bytes and memory.

    `materialises_scores`: attention writes all scores to memory, and computes those of masked pairs too.
    `fused_kernels`: norms, rotations, gates, experts and the loss are one kernel each.
    `triton`: our Triton kernels run on a GPU. On a CPU torch's own kernels or Triton's interpreter stand in for them.
    `dense_mask`: where attention takes a mask other than the causal one as a tensor of all pairs.
    `scores_for_uneven_widths_on_cpu`: on a CPU, attention materialises its scores where keys and values have different
    widths, because torch has no other kernel for them.
    """

    materialises_scores: bool = False
    fused_kernels: bool = False
    triton: bool = False
    dense_mask: Literal["never", "on CPU", "always"] = "never"
    scores_for_uneven_widths_on_cpu: bool = False

    @property
    def attention(self) -> Literal["standard", "flash"]:
        """The op table's name for its attention: `standard` materialises the scores, `flash` does not."""
        return "standard" if self.materialises_scores else "flash"

    def computed(self, phase: Phase) -> dict[str, Any]:
        """Workload options for what it computes. A cache stores no key that a new token does not see, so that decoding
        has no masked pairs."""
        return {
            "attention": self.attention,
            "masked_pairs": self.materialises_scores and phase != "decode",
            "kernels": "fused" if self.fused_kernels else "eager",
        }

    def temporaries(self, spec: ModelSpec, device: torch.device) -> dict[str, Any]:
        """Workload options for the temporaries that torch allocates on that device: dense masks, a norm's steps on a
        CPU, and scores where torch has no kernel without them."""
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
    """Whether keys and values have different widths."""
    return isinstance(mixer, AttentionKind) and (mixer.absorbs or mixer.value_dim != mixer.key_dim)


class Implementation(NamedTuple):
    """One way to compute a model, with its traits.

    `experts` None: experts run one after another, each with `glu`. `loss` None: the loss is computed from all logits.
    `unavailable`: why it cannot run here; empty where it can.
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
