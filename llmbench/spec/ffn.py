"""Feed-forwards: dense, gated, and mixture of experts (MoE). A feed-forward processes each token separately."""

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
"""The activation functions of feed-forwards.

`relu2` is relu(x)². `gelu` is the exact form with erf. `swiglu_oai` is the SwiGLU of gpt-oss, which clamps both inputs
and adds 1 to the up input. `xielu` is the activation of Apertus.
"""

XIELU_CONSTANTS = 2
"""Number of constants that a checkpoint stores for each xIELU: β and ε of arXiv 2411.13010. They are not trained."""

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
    """Return the common name of an activation function: `GELU (tanh)`, `ReLU²`."""
    return _PLAIN_NAMES.get(activation, activation)


class FFNKind(Kind, frozen=True):
    """The base class of all feed-forwards. It declares the properties that other files use."""

    @property
    @abstractmethod
    def summary(self) -> str:
        """A short text with kind and width for the headline of a table: `SwiGLU 11008`, `8 experts, 2 per token, SwiGLU
        14336`."""

    @property
    @abstractmethod
    def activation(self) -> Activation:
        """The elementwise function between the weight matrices."""

    @property
    @abstractmethod
    def bias(self) -> bool:
        """Whether the weight matrices have biases."""

    @property
    @abstractmethod
    def experts_summary(self) -> str | None:
        """A short text about the experts: `8 of 256 + shared 2048, sigmoid`. None: the feed-forward has no experts."""


@final
class Dense(FFNKind, frozen=True, tag="dense"):
    """A feed-forward with two matrices: down(act(up(x))).

    - intermediate_size: output width of the up matrix.
    - activation: the elementwise function act.
    - bias: whether both matrices have biases.
    - activation_parameters: number of trained parameters of the activation (xIELU: 2).
    - channel_mixing: whether this is RWKV's channel mixing. Each token is then mixed with the token before it, and a
      sigmoid gate of width hidden_size multiplies the output.
    """

    intermediate_size: Size
    activation: Activation = "gelu"
    bias: bool = False
    activation_parameters: Count = 0
    channel_mixing: bool = False

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
    """A feed-forward with three matrices: down(act(gate(x)) * up(x)).

    The activation makes it GLU (sigmoid), ReGLU (relu), GEGLU (gelu) or SwiGLU (silu).

    - intermediate_size: output width of the gate and up matrices.
    - activation: the elementwise function act.
    - bias: whether the three matrices have biases.
    - gate_scale: factor on gate(x) (Falcon-H1).
    - output_scale: factor on the output of the feed-forward (Falcon-H1).
    - inner_norm: whether a norm stands before the down matrix (BitNet).
    """

    intermediate_size: Size
    activation: Activation = "silu"
    bias: bool = False
    gate_scale: float = 1.0
    output_scale: float = 1.0
    inner_norm: bool = False

    experts_summary = None

    @property
    def summary(self) -> str:
        return f"{_GATED_NAMES.get(self.activation, 'gated ' + self.activation)} {self.intermediate_size}"

    def faults(self) -> Iterator[Fault]:
        yield from positive(self, "gate_scale", "output_scale")


class Router(Part, frozen=True):
    """The router, which selects the experts of each token and computes the weights of their outputs.

    - scores: function that turns the logits of the experts into scores. "softmax": a softmax over all experts, before
      the selection. "softmax_topk": a softmax over the selected experts only. "sigmoid": a sigmoid of each logit,
      before the selection. "sigmoid_topk": the experts with the largest logits are selected, and the sigmoid of their
      logits is their weight (Kolibri). "sparsemixer": the experts are selected one after another (Phi-3.5-MoE, arXiv
      2409.12136). The weight of a selected expert is its softmax over the remaining experts. This softmax leaves out
      experts whose logit differs from the best logit by a share of more than 2 · `jitter`.
    - bias: whether the projection to the logits has a bias.
    - correction: DeepSeek-V3's bias per expert, which balances the load of the experts without an auxiliary loss. A
      "buffer" is adjusted in training and stored in the checkpoint. A "parameter" is trained (ERNIE).
    - normalize: whether the weights of the selected experts are divided by their sum.
    - scale: factor on the weights of the selected experts.
    - n_group: number of groups into which the experts are divided.
    - topk_group: number of groups that the router selects per token. The router selects experts from these groups only.
    - hidden_size: width of a router that is a small network (ZAYA1): a projection to this width, a norm, two square
      matrices, and a projection to the logits. The first three matrices have biases. None: the router is one matrix.
    - jitter: the threshold of "sparsemixer".
    - on_input: whether the weight of an expert multiplies the input of the expert (Llama-4). If false, the weight
      multiplies the output.
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
            what = f"{self.scores} selects by logits alone, so it cannot use correction or n_group"
            yield Fault("scores", what, "leave out correction and n_group, or choose other scores")


class SharedExperts(Part, frozen=True):
    """The shared experts of a layer, which every token uses. One feed-forward describes all of them.

    - intermediate_size: sum of the widths of all shared experts.
    - gate: whether a sigmoid gate with one value per token multiplies the output of the shared experts (Qwen-MoE).
    - bias: whether the matrices have biases.
    - averaged: whether the outputs of the shared and the routed experts are averaged instead of added (Cohere).
    """

    intermediate_size: Size
    gate: bool = False
    bias: bool = False
    averaged: bool = False


@final
class MoE(FFNKind, frozen=True, tag="moe"):
    """A mixture of experts: each token uses `num_experts_per_tok` of `num_experts` feed-forwards.

    - num_experts: number of routed experts in a layer.
    - num_experts_per_tok: number of routed experts that each token uses.
    - intermediate_size: width of one routed expert.
    - activation: the activation function of the experts.
    - gated: whether an expert has three matrices (SwiGLU). If false, it has two.
    - bias: whether the matrices of the experts have biases.
    - router: selects the experts of each token.
    - shared: the shared experts, which every token uses.
    - beside: a dense feed-forward that reads the same input as the experts. Its output is added to their output
      (Arctic, Gemma-4).
    - capacity_factor: the largest number of tokens per expert in one pass, as a multiple of the even share. The even
      share is tokens × num_experts_per_tok / num_experts. The buffers of the experts have this size (Switch, arXiv
      2101.03961, equation 3).
    - expert_capacity: the largest number of tokens per expert and sequence (Switch in Hugging Face configs).
    - zero_experts: number of experts without weights and computation (LongCat's identity experts).
    - latent_size: width of the experts' input and output, if it differs from hidden_size. All experts share two
      projections, one to this width and one back to hidden_size.
    - output_bias: whether a bias is added to the output of the mixture (JetMoE).
    - output_norm: whether a norm stands on the output of the mixture (A.X K1).
    - separate_norms: whether the experts and the dense feed-forward `beside` them have norms of their own, and the
      router and the norm of the experts read the residual stream (Gemma-4). The router then has a trained factor per
      channel of its input and one per expert.

    With capacity_factor or expert_capacity, an expert processes only the first tokens that select it, up to its
    capacity. It adds nothing to later tokens. Without both, an expert processes all tokens that select it.
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
    output_bias: bool = False
    output_norm: bool = False
    separate_norms: bool = False

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
        if self.separate_norms and self.beside is None:
            yield Fault("separate_norms", "needs a dense feed-forward beside the experts, but beside is absent")
        factor = self.capacity_factor
        if factor is not None and not 0.001 <= factor <= 1000:
            hint = "1.25 is usual. Without capacity_factor, an expert processes all tokens that select it"
            yield Fault("capacity_factor", f"{factor} is not between 0.001 and 1000", hint)
        if not self.gated:
            yield from _two_matrices(self.activation)

    @property
    def _choices_label(self) -> str:
        """The fields that give the number of router outputs, with their values, for error messages."""
        label = f"num_experts {self.num_experts}"
        return f"{label} and zero_experts {self.zero_experts}" if self.zero_experts else label

    def _group_faults(self, choices: int) -> Iterator[Fault]:
        """Yield faults of the expert groups of a router. choices: number of router outputs."""
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
                f"{router.n_group} gives groups of {size} expert, but a router with correction adds the scores of the"
                " two best experts of a group",
            )


def _two_matrices(activation: Activation) -> Iterator[Fault]:
    if activation == "swiglu_oai":
        yield Fault(
            "activation",
            f"{activation} needs a gate, but this feed-forward has only two matrices",
            "choose another activation",
        )


FFN = Dense | Gated | MoE
