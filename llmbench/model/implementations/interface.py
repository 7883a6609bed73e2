"""What an implementation is: the functions it has, and what they are given.

B batch, N query heads, K KV heads, S query length, T key length, H head dim, V vocabulary, D hidden, F intermediate,
E experts, k experts a token, t tokens, C latent width, R rotated dims.
"""

from __future__ import annotations

from typing import NamedTuple, Protocol

from torch import Tensor

from llmbench.spec.ffn import Activation, MoE, Router
from llmbench.spec.model import Norm


class Mask(NamedTuple):
    """Which keys a query sees. Positions are integers, [B, S] and [B, T]; a key at a negative position is empty.

    `plain`: queries and keys are the same positions, from 0 and without gaps, so that kernels may build the mask
    themselves.
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
        """Whether no pair is left out."""
        return self.plain and not self.causal and self.window is None

    @property
    def only_causal(self) -> bool:
        """Whether the mask is the plain lower triangle: a window or a chunk that holds all keys leaves none out."""
        length = self.keys.shape[1]
        return self.plain and self.causal and min(self.window or length, self.chunk or length) >= length


class Slots(NamedTuple):
    """A layer's cache as it lies in memory: keys [B, K, T, H] and values, or pages of them [P, page, K, H] by a table
    [B, pages]; quantised rows with the scales of their parts [..., parts]. Slot t of a sequence holds the token at
    position t, or in a ring the last one whose position is t modulo T. Past `lengths` [B] it may hold anything."""

    keys: Tensor
    values: Tensor
    key_scales: Tensor | None
    value_scales: Tensor | None
    lengths: Tensor
    table: Tensor | None = None
    ring: bool = False


class Seen(Protocol):
    """Keys [B, K, T, H] and values [B, K, T, Hv], and which of them each query sees. Those that a cache holds are
    gathered when they are asked for; `slots` says where they lie, for kernels that read them in place."""

    @property
    def k(self) -> Tensor: ...
    @property
    def v(self) -> Tensor: ...
    @property
    def mask(self) -> Mask: ...
    @property
    def slots(self) -> Slots | None: ...


class Given(NamedTuple):
    """Keys and values that are at hand."""

    k: Tensor
    v: Tensor
    mask: Mask
    slots: None = None


class Scores(NamedTuple):
    """What is done to scores besides scaling: a soft cap, sinks [N], ALiBi's slopes [N] by which distances to keys
    count, an added bias [B or 1, N, S, T]."""

    scale: float
    soft_cap: float | None = None
    sinks: Tensor | None = None
    slopes: Tensor | None = None
    bias: Tensor | None = None

    def added(self, mask: Mask) -> Tensor | None:
        """Slopes and bias as one bias, if there is any."""
        if self.slopes is None:
            return self.bias
        distance = mask.keys[:, None, None, :] - mask.queries[:, None, :, None]
        alibi = self.slopes[None, :, None, None] * distance
        return alibi if self.bias is None else alibi + self.bias


class Attend(Protocol):
    """softmax(q kᵀ) v for q [B, N, S, H]; the result is [B, N, S, Hv]."""

    def __call__(self, q: Tensor, seen: Seen, scores: Scores) -> Tensor: ...


class AttendLatent(Protocol):
    """Absorbed latent attention of q_latent [B, N, S, C] and q_rope [B, N, S, R] on rows [B, 1, T, C + R], the keys of
    `seen`, whose first C numbers are the values: [B, N, S, C]."""

    def __call__(self, q_latent: Tensor, q_rope: Tensor, seen: Seen, scores: Scores) -> Tensor: ...


class Normalise(Protocol):
    """The norm of x [..., W], or of x + residual; and what was normed. Weight and bias [W], or [N, W] for x
    [..., N, W]."""

    def __call__(
        self, x: Tensor, residual: Tensor | None, weight: Tensor | None, bias: Tensor | None, norm: Norm
    ) -> tuple[Tensor, Tensor]: ...


class Rotate(Protocol):
    """q [B, N, S, H] and k [B, K, S, H], the first R dims of each head turned by cos and sin [B, 1, S, R/2]."""

    def __call__(
        self, q: Tensor, k: Tensor, tables: tuple[Tensor, Tensor], *, interleaved: bool
    ) -> tuple[Tensor, Tensor]: ...


class GLU(Protocol):
    """act(gate) · up, all [..., F]."""

    def __call__(self, gate: Tensor, up: Tensor, name: Activation) -> Tensor: ...


class Route(Protocol):
    """Weights [t, k] and experts [t, k] of logits [t, E] in fp32; `correction` [E] moves the choice."""

    def __call__(
        self, logits: Tensor, top_k: int, correction: Tensor | None, router: Router
    ) -> tuple[Tensor, Tensor]: ...


class ExpertWeights(NamedTuple):
    """gate and up [E, F, D], down [E, D, F], biases [E, F], [E, F], [E, D]; None for what a mixture does not have."""

    gate: Tensor | None
    up: Tensor
    down: Tensor
    gate_bias: Tensor | None
    up_bias: Tensor | None
    down_bias: Tensor | None


class Experts(Protocol):
    """What the chosen experts [t, k] make of x [t, D], weighted and summed, [t, D]. An expert of number E or more gives
    the token back as it is."""

    def __call__(self, x: Tensor, weights: Tensor, chosen: Tensor, held: ExpertWeights, moe: MoE) -> Tensor: ...


class Loss(Protocol):
    """The mean cross-entropy of tokens x [t, D] over `weight` [V, D], for targets [t]; -100 counts for nothing. Logits
    are times `scale`, then capped."""

    def __call__(
        self, x: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor, scale: float, soft_cap: float | None
    ) -> Tensor: ...


class Implementation(NamedTuple):
    """One way to compute a model. `experts` None: one after another, each by `glu`; `loss` None: from all logits."""

    name: str
    attend: Attend
    attend_latent: AttendLatent
    norm: Normalise
    rotate: Rotate
    glu: GLU
    route: Route
    experts: Experts | None = None
    loss: Loss | None = None
