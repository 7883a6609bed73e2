"""The interface of an implementation: its functions with their arguments, and its traits for the op table.

Dimensions: B batch, N query heads, K KV heads, S query length, T key length, H head dim, Hv value head dim, V
vocabulary size, D hidden size, F intermediate size, E experts, k experts per token, t tokens, C latent width, R rotary
dims.
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
    """The attention mask: it says which keys each query sees.

    - `queries` [B, S]: the position of each query.
    - `keys` [B, T]: the position of each key. A negative position marks an empty slot.
    - `causal`: a query sees no key at a later position.
    - `window`: a causal query sees only the last `window` keys, including its own. Other queries see `window` // 2 keys
      on each side. None: no bound.
    - `chunk`: with a causal mask, a query sees only keys in its own chunk of `chunk` positions. None: no chunks.
    - `plain`: queries and keys have the same positions, from 0 and without gaps. A kernel may then build the mask
      itself.
    """

    queries: Tensor
    keys: Tensor
    causal: bool
    window: int | None
    chunk: int | None
    plain: bool

    def allowed(self) -> Tensor:
        """Return the mask as booleans [B, 1, S, T]. An entry is true if the query sees the key."""
        return self.sees(self.queries[:, None, :, None], self.keys[:, None, None, :])

    def sees(self, query: Tensor, key: Tensor) -> Tensor:
        """Return whether a query at position `query` sees a key at position `key`, as a boolean tensor.

        The shapes of the arguments must broadcast.
        """
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
        """Whether the mask is the lower triangle and nothing more.

        A window or chunk that covers all keys hides no key.
        """
        length = self.keys.shape[1]
        return self.plain and self.causal and min(self.window or length, self.chunk or length) >= length


class Slots(NamedTuple):
    """The keys [B, K, T, H] and values [B, K, T, Hv] of one layer's cache, at their place in memory.

    - `keys`, `values`: in a paged cache, the shape is [P, page size, K, H], with P pages.
    - `key_scales`, `value_scales`: the scales of quantised rows [..., segments]. None: rows are not quantised.
    - `lengths` [B]: the number of tokens per sequence. The content of later slots is undefined.
    - `table` [B, pages]: the pages of each sequence. None: the cache is not paged.
    - `ring`: whether new tokens overwrite old tokens. In a ring, slot t stores the last token whose position modulo T
      is t. In other caches, slot t stores the token at position t.
    """

    keys: Tensor
    values: Tensor
    key_scales: Tensor | None
    value_scales: Tensor | None
    lengths: Tensor
    table: Tensor | None = None
    ring: bool = False


class Seen(Protocol):
    """The keys [B, K, T, H] and values [B, K, T, Hv] that queries see, and the mask.

    If there is a cache, each access to `k` or `v` gathers the rows of the cache. `slots` gives a kernel direct access
    to the cache. It is None without a cache.
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
    """Keys and values that are tensors, not rows of a cache."""

    k: Tensor
    v: Tensor
    mask: Mask
    slots: None = None


class Scores(NamedTuple):
    """The changes that attention applies to its scores and its probabilities.

    - `scale`: the factor of the scores.
    - `soft_cap`: scores become soft_cap · tanh(score / soft_cap). None: no cap.
    - `sinks` [N]: one additional score per head, for a key without value.
    - `slopes` [N]: ALiBi's slope per head. Slope times distance is added to the score.
    - `bias` [B or 1, N, S, T]: a bias that is added to the scores.
    - `dropout`: the share of probabilities that dropout sets to 0, after the softmax.
    """

    scale: float
    soft_cap: float | None = None
    sinks: Tensor | None = None
    slopes: Tensor | None = None
    bias: Tensor | None = None
    dropout: float = 0.0

    def added(self, mask: Mask) -> Tensor | None:
        """Return the sum of the ALiBi bias and `bias` as one bias [B or 1, N, S, T].

        Returns None if the scores have no bias at all.
        """
        if self.slopes is None:
            return self.bias
        distance = mask.keys[:, None, None, :] - mask.queries[:, None, :, None]
        alibi = self.slopes[None, :, None, None] * distance
        return alibi if self.bias is None else alibi + self.bias


class Attend(Protocol):
    """Compute attention softmax(q kᵀ) v for queries q [B, N, S, H]. Returns [B, N, S, Hv]."""

    def __call__(self, q: Tensor, seen: Seen, scores: Scores) -> Tensor: ...


class AttendLatent(Protocol):
    """Compute absorbed latent attention with q_latent [B, N, S, C] and q_rope [B, N, S, R]. Returns [B, N, S, C].

    The keys in `seen` are cache rows [B, 1, T, C + R]. The first C numbers of a row are also its value.
    """

    def __call__(self, q_latent: Tensor, q_rope: Tensor, seen: Seen, scores: Scores) -> Tensor: ...


class Normalise(Protocol):
    """Compute the norm of x [..., W], or of the sum x + residual.

    Returns the result, and the input of the norm: x or the sum. `weight` and `bias` have the shape [W], or [N, W]
    for x [..., N, W].
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
    """Compute the gated activation act(gate) · up. All tensors are [..., F]."""

    def __call__(self, gate: Tensor, up: Tensor, name: Activation) -> Tensor: ...


class Route(Protocol):
    """Select the experts of each token from fp32 logits [t, E]. Returns their weights [t, k] and indices [t, k].

    `correction` [E] is added to the scores for the selection. It does not change the weights.
    """

    def __call__(
        self, logits: Tensor, top_k: int, correction: Tensor | None, router: Router
    ) -> tuple[Tensor, Tensor]: ...


class ExpertWeights(NamedTuple):
    """The weights of all experts. A tensor that the mixture does not have is None.

    Shapes: gate and up [E, F, D], down [E, D, F], gate_bias and up_bias [E, F], down_bias [E, D].
    """

    gate: Tensor | None
    up: Tensor
    down: Tensor
    gate_bias: Tensor | None
    up_bias: Tensor | None
    down_bias: Tensor | None


class Experts(Protocol):
    """Compute the weighted sum [t, D] of the outputs of the experts `chosen` [t, k], for tokens x [t, D].

    An index of E or more names an expert without weights. The output of this expert is the token itself.
    """

    def __call__(self, x: Tensor, weights: Tensor, chosen: Tensor, experts: ExpertWeights, moe: MoE) -> Tensor: ...


class Loss(Protocol):
    """Compute the mean cross-entropy of x [t, D] with the vocabulary matrix `weight` [V, D], for targets [t].

    A target of -100 is ignored. Logits are multiplied by `scale`, then capped.
    """

    def __call__(
        self, x: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor, scale: float, soft_cap: float | None
    ) -> Tensor: ...


class Traits(NamedTuple):
    """The properties of an implementation. The op table counts FLOPs, bytes and memory from them.

    - `materialises_scores`: attention writes all scores to memory. It also computes the scores of masked pairs.
    - `fused_kernels`: norms, rotations, gates, experts and the loss run as one kernel each.
    - `triton`: our Triton kernels run on a GPU. On a CPU, torch's kernels or Triton's interpreter replace them.
    - `dense_mask`: the devices on which attention stores every mask other than the causal mask as a tensor of all
      pairs.
    - `scores_for_uneven_widths_on_cpu`: on a CPU, attention materialises its scores if keys and values have different
      widths, because torch has no other kernel for them.
    - `compiled`: the part that torch.compile compiles: "attention", or each "piece" of a model as a whole.
    - `higher_order`: the name of torch's higher-order op that computes attention. Such an op compiles at its first
      call, and hides its kernels. None: attention consists of plain ops.
    """

    materialises_scores: bool = False
    fused_kernels: bool = False
    triton: bool = False
    dense_mask: Literal["never", "on CPU", "always"] = "never"
    scores_for_uneven_widths_on_cpu: bool = False
    compiled: Literal["nothing", "attention", "piece"] = "nothing"
    higher_order: str | None = None

    @property
    def attention(self) -> Literal["standard", "flash"]:
        """The op table's name for this attention: `standard` materialises the scores, `flash` does not."""
        return "standard" if self.materialises_scores else "flash"

    def computed(self, phase: Phase) -> dict[str, Any]:
        """Return the Workload options that describe which work the implementation computes.

        In decoding, a new token sees every key in the cache, so there are no masked pairs.
        """
        return {
            "attention": self.attention,
            "masked_pairs": self.materialises_scores and phase != "decode",
            "kernels": "fused" if self.fused_kernels else "eager",
            "loss": "linear" if self.fused_kernels else "plain",
        }

    def temporaries(self, spec: ModelSpec, device: torch.device) -> dict[str, Any]:
        """Return the Workload options for the temporaries that torch allocates on this device.

        The temporaries are dense masks, the intermediate results of a norm on a CPU, and scores if torch has no kernel
        that avoids them.
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
    """Return whether the keys and values of an attention layer have different widths."""
    return isinstance(mixer, AttentionKind) and (mixer.absorbs or mixer.value_dim != mixer.key_dim)


class Implementation(NamedTuple):
    """An implementation of a model: one function per step, and its traits.

    - `experts`: computes all experts together. None: experts run one after another, with `glu`.
    - `loss`: computes the loss without materialised logits. None: the logits are materialised.
    - `unavailable`: the reason why this machine cannot run the implementation. Empty if it can.
    - `note`: a warning that `llmbench model` shows below its result. Empty if there is none.
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
    note: str = ""
