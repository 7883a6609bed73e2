"""What transforms each token by itself: dense, gated and mixture-of-experts feed-forwards."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

from llmbench.spec.base import Count, Fault, Kind, Part, Size
from llmbench.spec.faults import nearest_divisors, not_negative, positive

Activation = Literal[
    "relu",
    "relu2",
    "gelu",
    "gelu_tanh",
    "quick_gelu",
    "silu",
    "sigmoid",
    "tanh",
    "mish",
    "swiglu_oai",
    "xielu",
]
"""relu2 is relu(x)²; gelu the erf form; swiglu_oai gpt-oss's clamped, shifted SwiGLU; xielu Apertus's."""


class Dense(Kind, frozen=True, tag="dense"):
    """Two matrices: down(act(up(x))). `activation_parameters` counts what a trained activation holds (xIELU: 2)."""

    intermediate_size: Size
    activation: Activation = "gelu"
    bias: bool = False
    activation_parameters: Count = 0

    def faults(self) -> Iterator[Fault]:
        yield from _two_matrices(self.activation)
        if self.activation_parameters and self.activation != "xielu":
            what = f"{self.activation_parameters}, but {self.activation} has none"
            yield Fault("activation_parameters", what, "xielu is the activation that is trained")


class Gated(Kind, frozen=True, tag="gated"):
    """Three matrices: down(act(gate(x)) * up(x)): GLU (sigmoid), ReGLU, GEGLU, SwiGLU by activation.

    gate_scale multiplies gate(x), output_scale the result (Falcon-H1).
    """

    intermediate_size: Size
    activation: Activation = "silu"
    bias: bool = False
    gate_scale: float = 1.0
    output_scale: float = 1.0

    def faults(self) -> Iterator[Fault]:
        yield from positive(self, "gate_scale", "output_scale")


class Router(Part, frozen=True):
    """Chooses the experts of a token.

    correction: DeepSeek-V3's per-expert bias for aux-loss-free balance, a "buffer" that training nudges and the
        checkpoint stores, or a trained "parameter" (ERNIE).
    scores: "softmax" over all experts before the choice, "softmax_topk" over the chosen ones, "sigmoid",
        "sigmoid_topk" (Kolibri: logits choose, and only those of the chosen go through a sigmoid), or "sparsemixer"
        (Phi-3.5-MoE, arXiv 2409.12136): each choice in turn by a softmax over the experts that are left and whose
        logits are within 2 · `jitter` of the best, relative to it.
    on_input: weights multiply what an expert reads, not what it gives (Llama-4).
    hidden_size: the router is a network of this width: a projection into it, a norm, two square layers (all three with
        biases), then the choice (ZAYA1).
    """

    scores: Literal["softmax", "softmax_topk", "sigmoid", "sigmoid_topk", "sparsemixer"] = "softmax"
    bias: bool = False
    correction: Literal["buffer", "parameter"] | None = None
    normalize: bool = False
    scale: float = 1.0
    n_group: Size = 1
    topk_group: Size = 1
    hidden_size: Size | None = None
    jitter: float = 0.01
    on_input: bool = False

    def faults(self) -> Iterator[Fault]:
        yield from positive(self, "scale")
        yield from not_negative(self, "jitter")
        if self.topk_group > self.n_group:
            yield Fault("topk_group", f"{self.topk_group} is more than n_group {self.n_group}")
        if self.scores in ("softmax_topk", "sparsemixer") and (self.correction or self.n_group > 1):
            what = f"{self.scores} chooses by logits alone"
            yield Fault("scores", what, "leave correction and n_group out, or choose other scores")


class SharedExperts(Part, frozen=True):
    """Experts that every token visits, written as one feed-forward of their joint width.

    gate: a sigmoid gate of one output on their result (Qwen-MoE). averaged: the result and that of the routed experts
    are averaged, not added (Cohere).
    """

    intermediate_size: Size
    gate: bool = False
    bias: bool = False
    averaged: bool = False


class MoE(Kind, frozen=True, tag="moe"):
    """A mixture of experts: `num_experts_per_tok` of `num_experts` feed-forwards a token.

    gated: experts have three matrices (SwiGLU) or two. zero_experts: router outputs that compute nothing
    (LongCat's identity experts). latent_size: experts work in a narrower space between two shared projections.
    beside: a dense feed-forward on the same input whose output is added (Arctic, Gemma-4).
    capacity_factor: tokens an expert takes of a pass, as a multiple of its even share, in buffers of that size (Switch,
    arXiv 2101.03961, equation 3). expert_capacity: tokens it takes of each sequence of a pass (Switch on the hub).
    Either way the first ones are taken, and the others get nothing of it; with neither, all are taken.
    """

    num_experts: Size
    num_experts_per_tok: Size
    intermediate_size: Size
    activation: Activation = "silu"
    gated: bool = True
    bias: bool = False
    router: Router = Router()
    shared: SharedExperts | None = None
    beside: Dense | Gated | None = None
    capacity_factor: float | None = None
    expert_capacity: Size | None = None
    zero_experts: Count = 0
    latent_size: Size | None = None

    def faults(self) -> Iterator[Fault]:
        choices = self.num_experts + self.zero_experts
        if self.num_experts_per_tok > choices:
            what = f"{self.num_experts_per_tok} is more than {self._choices_label}"
            yield Fault("num_experts_per_tok", what)
        yield from self._group_faults(choices)
        if self.capacity_factor is not None and self.expert_capacity is not None:
            yield Fault("expert_capacity", "and capacity_factor exclude each other", "leave one of them out")
        factor = self.capacity_factor
        if factor is not None and not 0.001 <= factor <= 1000:
            hint = "1.25 is usual; without it experts take all that comes"
            yield Fault("capacity_factor", f"{factor} is not from 0.001 to 1000 even shares", hint)
        if not self.gated:
            yield from _two_matrices(self.activation)

    @property
    def _choices_label(self) -> str:
        """What a router chooses from, as messages say it."""
        label = f"num_experts {self.num_experts}"
        return f"{label} and zero_experts {self.zero_experts}" if self.zero_experts else label

    def _group_faults(self, choices: int) -> Iterator[Fault]:
        """What its router's groups cannot be, of so many outputs."""
        router = self.router
        if choices % router.n_group:
            what = f"{router.n_group} does not divide {self._choices_label}"
            yield Fault("router.n_group", what, nearest_divisors(router.n_group, choices))
            return
        if router.n_group == 1:
            return
        size = choices // router.n_group
        room = router.topk_group * size
        if self.num_experts_per_tok > room:
            what = (
                f"{self.num_experts_per_tok} is more than the {room} experts of topk_group {router.topk_group} groups"
            )
            yield Fault("num_experts_per_tok", what, "choose a larger router.topk_group")
        if size < 2 and router.correction is not None:
            yield Fault("router.n_group", f"{router.n_group} leaves {size} expert a group, and its two best rank it")


def _two_matrices(activation: Activation) -> Iterator[Fault]:
    if activation == "swiglu_oai":
        yield Fault("activation", f"{activation} clamps a gate, and there is none", "it needs three matrices")


FFN = Dense | Gated | MoE
