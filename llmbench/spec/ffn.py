"""Feed-forwards: dense, gated and mixture of experts. A feed-forward processes each token separately."""

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
"""`relu2` is relu(x)². `gelu` is the exact form with erf. `swiglu_oai` is gpt-oss's SwiGLU, which clamps its inputs and
adds 1 to one of them. `xielu` is the activation of Apertus."""

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
    """Return the common name of an activation: `GELU (tanh)`, `ReLU²`."""
    return _PLAIN_NAMES.get(activation, activation)


class FFNKind(Kind, frozen=True):
    """The base class of all feed-forwards. It declares the properties that other files use."""

    @property
    @abstractmethod
    def summary(self) -> str:
        """Kind and width for the headline of a table: `SwiGLU 11008`, `8 experts, 2 per token, SwiGLU 14336`."""

    @property
    @abstractmethod
    def activation(self) -> Activation:
        """The elementwise function between the matrices."""

    @property
    @abstractmethod
    def bias(self) -> bool:
        """Whether the matrices have biases."""

    @property
    @abstractmethod
    def experts_summary(self) -> str | None:
        """Text that describes the experts: `8 of 256 + shared 2048, sigmoid`. None: there are no experts."""


@final
class Dense(FFNKind, frozen=True, tag="dense"):
    """A feed-forward of two matrices: down(act(up(x))).

    - intermediate_size: width between the matrices.
    - activation_parameters: number of trained parameters of the activation (xIELU: 2).
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
            what = f"{self.activation_parameters}, but the activation {self.activation} has no parameters"
            yield Fault("activation_parameters", what, "only xielu has trained parameters")


@final
class Gated(FFNKind, frozen=True, tag="gated"):
    """A feed-forward of three matrices: down(act(gate(x)) * up(x)).

    The activation makes it GLU (sigmoid), ReGLU (relu), GEGLU (gelu) or SwiGLU (silu).

    - intermediate_size: width between the matrices.
    - gate_scale: factor on gate(x) (Falcon-H1).
    - output_scale: factor on the result (Falcon-H1).
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
    """The router: it selects the experts of each token and weights their outputs.

    - scores: how logits become scores, by which experts are selected and weighted. "softmax" covers all experts before
      the selection. "softmax_topk" covers only the selected experts. "sigmoid" is computed per expert. "sigmoid_topk"
      selects by logits and then computes the sigmoid of the selected experts (Kolibri). "sparsemixer" selects one
      expert after another (Phi-3.5-MoE, arXiv 2409.12136): each time, a softmax covers the remaining experts whose
      logits are within 2 · `jitter` of the best logit, relative to it.
    - bias: the projection to the logits has a bias.
    - correction: DeepSeek-V3's bias per expert, which balances the experts without an auxiliary loss. A "buffer" is
      adjusted in training and stored in the checkpoint. A "parameter" is trained (ERNIE).
    - normalize: the weights of the selected experts are divided by their sum.
    - scale: factor on the weights of the selected experts.
    - n_group: number of groups that the experts are divided into.
    - topk_group: number of groups that are selected. Experts are selected from these groups only.
    - hidden_size: width of a router that is a small network (ZAYA1): a projection to this width, a norm, two square
      layers, and a projection to the logits. The first three matrices have biases. None: the router is one matrix.
    - jitter: threshold for "sparsemixer".
    - on_input: the weights multiply the input of an expert instead of its output (Llama-4).
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
            what = f"{self.scores} selects by logits alone, without correction and groups"
            yield Fault("scores", what, "leave out correction and n_group, or choose other scores")


class SharedExperts(Part, frozen=True):
    """The shared experts, which every token uses. They are described as one feed-forward.

    - intermediate_size: sum of the widths of all shared experts.
    - gate: a sigmoid gate with one value per token multiplies their output (Qwen-MoE).
    - averaged: the outputs of shared and routed experts are averaged instead of added (Cohere).
    """

    intermediate_size: Size
    gate: bool = False
    bias: bool = False
    averaged: bool = False


@final
class MoE(FFNKind, frozen=True, tag="moe"):
    """A mixture of experts: each token uses `num_experts_per_tok` of `num_experts` feed-forwards.

    - intermediate_size: width of one expert.
    - gated: an expert has three matrices (SwiGLU). Otherwise it has two.
    - bias: the matrices of the experts have biases.
    - shared: experts that every token uses.
    - beside: a dense feed-forward on the same input. Its output is added (Arctic, Gemma-4).
    - capacity_factor: the most tokens per expert and pass, as a multiple of the even share. Buffers have this size
      (Switch, arXiv 2101.03961, equation 3).
    - expert_capacity: the most tokens per expert and sequence (Switch in Hugging Face configs).
    - zero_experts: router outputs without weights and computation (LongCat's identity experts).
    - latent_size: width of the experts' input and output, if it differs from hidden_size. Two projections, shared by
      all experts, lead to this width and back.

    With capacity_factor or expert_capacity, an expert processes the first tokens that select it, and adds nothing to
    the later ones. Without them, an expert processes all tokens that select it.
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
            yield Fault("expert_capacity", "cannot be combined with capacity_factor", "leave one of them out")
        factor = self.capacity_factor
        if factor is not None and not 0.001 <= factor <= 1000:
            hint = "1.25 is usual; without capacity_factor, experts process all tokens"
            yield Fault("capacity_factor", f"{factor} is not between 0.001 and 1000", hint)
        if not self.gated:
            yield from _two_matrices(self.activation)

    @property
    def _choices_label(self) -> str:
        """Text for messages: the fields that give the number of router outputs."""
        label = f"num_experts {self.num_experts}"
        return f"{label} and zero_experts {self.zero_experts}" if self.zero_experts else label

    def _group_faults(self, choices: int) -> Iterator[Fault]:
        """Yield faults of the groups of a router with `choices` outputs."""
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
                f"{self.num_experts_per_tok} is more than the {room} experts in the {router.topk_group} selected groups"
            )
            yield Fault("num_experts_per_tok", what, "choose a larger router.topk_group")
        if size < 2 and router.correction is not None:
            yield Fault(
                "router.n_group",
                f"{router.n_group} leaves {size} expert per group, but a group is ranked by its two best experts",
            )


def _two_matrices(activation: Activation) -> Iterator[Fault]:
    if activation == "swiglu_oai":
        yield Fault(
            "activation", f"{activation} needs a gate, but there are only two matrices", "choose another activation"
        )


FFN = Dense | Gated | MoE
