"""Feed-forwards, which transform each token by itself: dense, gated and mixtures of experts."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator
from typing import Literal, final

from llmbench.spec.base import Count, Fault, Kind, Part, Size, plural
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
"""relu2: relu(x)². gelu: the erf form. swiglu_oai: gpt-oss's clamped, shifted SwiGLU. xielu: Apertus's."""

_GATED_NAMES: dict[Activation, str] = {
    "silu": "SwiGLU",
    "gelu": "GEGLU",
    "gelu_tanh": "GEGLU",
    "relu": "ReGLU",
    "sigmoid": "GLU",
    "swiglu_oai": "SwiGLU",
}
_PLAIN_NAMES: dict[Activation, str] = {
    "gelu": "GELU",
    "gelu_tanh": "GELU (tanh)",
    "relu": "ReLU",
    "relu2": "ReLU²",
    "silu": "SiLU",
    "xielu": "xIELU",
}


def activation_name(activation: Activation) -> str:
    """An activation as the field writes it: `GELU (tanh)`, `ReLU²`."""
    return _PLAIN_NAMES.get(activation, activation)


class FFNKind(Kind, frozen=True):
    """A feed-forward, with what other code needs to know about it."""

    @property
    @abstractmethod
    def summary(self) -> str:
        """Kind and size, as a headline shows them: `SwiGLU 11008`, `8 experts, 2 per token, SwiGLU 14336`."""

    @property
    @abstractmethod
    def activation(self) -> Activation:
        """The elementwise function between its matrices."""

    @property
    @abstractmethod
    def bias(self) -> bool:
        """Whether its matrices have biases."""

    @property
    @abstractmethod
    def experts_summary(self) -> str | None:
        """Its experts: `8 of 256 + shared 2048, sigmoid`; None where every token uses every weight."""


@final
class Dense(FFNKind, frozen=True, tag="dense"):
    """Two matrices: down(act(up(x))).

    activation_parameters: parameters of a trained activation (xIELU: 2).
    """

    intermediate_size: Size
    activation: Activation = "gelu"
    bias: bool = False
    activation_parameters: Count = 0

    experts_summary = None

    @property
    def summary(self) -> str:
        return f"{activation_name(self.activation)} {self.intermediate_size}"

    def faults(self) -> Iterator[Fault]:
        yield from _two_matrices(self.activation)
        if self.activation_parameters and self.activation != "xielu":
            what = f"{self.activation_parameters}, but {self.activation} has none"
            yield Fault("activation_parameters", what, "xielu is the activation that is trained")


@final
class Gated(FFNKind, frozen=True, tag="gated"):
    """Three matrices: down(act(gate(x)) * up(x)): GLU (sigmoid), ReGLU, GEGLU, SwiGLU by activation.

    gate_scale multiplies gate(x), output_scale the result (Falcon-H1).
    """

    intermediate_size: Size
    activation: Activation = "silu"
    bias: bool = False
    gate_scale: float = 1.0
    output_scale: float = 1.0

    experts_summary = None

    @property
    def summary(self) -> str:
        return f"{_GATED_NAMES.get(self.activation, 'gated ' + self.activation)} {self.intermediate_size}"

    def faults(self) -> Iterator[Fault]:
        yield from positive(self, "gate_scale", "output_scale")


class Router(Part, frozen=True):
    """The router, which chooses the experts of a token.

    correction: DeepSeek-V3's bias per expert for balance without an auxiliary loss: a "buffer" that training adjusts
        and the checkpoint stores, or a trained "parameter" (ERNIE).
    scores: "softmax" over all experts before the choice; "softmax_topk" over the chosen ones; "sigmoid";
        "sigmoid_topk" (Kolibri): the logits choose, and a sigmoid is taken of the chosen ones; or "sparsemixer"
        (Phi-3.5-MoE, arXiv 2409.12136): each choice in turn is a softmax over the experts that are left and whose
        logits are within 2 · `jitter` of the best, relative to it.
    on_input: the weights multiply an expert's input instead of its output (Llama-4).
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
            yield Fault("scores", what, "leave out correction and n_group, or choose other scores")


class SharedExperts(Part, frozen=True):
    """The experts that every token uses, as one feed-forward of their joint width.

    gate: a sigmoid gate with one output multiplies their result (Qwen-MoE). averaged: their result and the routed
    experts' are averaged, not added (Cohere).
    """

    intermediate_size: Size
    gate: bool = False
    bias: bool = False
    averaged: bool = False


@final
class MoE(FFNKind, frozen=True, tag="moe"):
    """A mixture of experts: each token uses `num_experts_per_tok` of `num_experts` feed-forwards.

    gated: experts have three matrices (SwiGLU), otherwise two. zero_experts: router outputs that compute nothing
    (LongCat's identity experts). latent_size: experts work in a narrower space between two shared projections.
    beside: a dense feed-forward on the same input, whose output is added (Arctic, Gemma-4).
    capacity_factor: most tokens per expert and pass, as a multiple of its even share; buffers have that size (Switch,
    arXiv 2101.03961, equation 3). expert_capacity: most tokens per expert and sequence (Switch on the hub). Under
    either limit, an expert takes the first tokens, and adds nothing to the others. With neither, it takes all tokens.
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

    @property
    def summary(self) -> str:
        name = _GATED_NAMES.get(self.activation, self.activation) if self.gated else activation_name(self.activation)
        shared = " + shared" if self.shared is not None else ""
        experts = f"{plural(self.num_experts, 'expert')}, {self.num_experts_per_tok} per token{shared}"
        return f"{experts}, {name} {self.intermediate_size}"

    @property
    def experts_summary(self) -> str:
        shared = f" + shared {self.shared.intermediate_size}" if self.shared else ""
        return f"{self.num_experts_per_tok} of {self.num_experts}{shared}, {self.router.scores}"

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
            hint = "1.25 is usual; without it, experts take all tokens"
            yield Fault("capacity_factor", f"{factor} is not from 0.001 to 1000 even shares", hint)
        if not self.gated:
            yield from _two_matrices(self.activation)

    @property
    def _choices_label(self) -> str:
        """The number of router outputs, as messages write it."""
        label = f"num_experts {self.num_experts}"
        return f"{label} and zero_experts {self.zero_experts}" if self.zero_experts else label

    def _group_faults(self, choices: int) -> Iterator[Fault]:
        """Faults of the router's groups, for so many router outputs."""
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
            yield Fault("router.n_group", f"{router.n_group} leaves {size} expert per group, but the two best rank it")


def _two_matrices(activation: Activation) -> Iterator[Fault]:
    if activation == "swiglu_oai":
        yield Fault("activation", f"{activation} clamps a gate, but there is none", "it needs three matrices")


FFN = Dense | Gated | MoE
