"""The ops of feed-forwards.

Elements of the weights: a dense feed-forward has 2·D·F and a gated one has 3·D·F, for hidden size D and intermediate
size F. Each expert is a dense or a gated feed-forward. A router for E experts has D·E.
"""

from __future__ import annotations

from math import ceil
from typing import Literal, assert_never

from llmbench.errors import LayoutError
from llmbench.sizing.dtypes import bytes_of
from llmbench.sizing.lower.builder import Builder, Dim, product, share
from llmbench.sizing.op import Collective, Component
from llmbench.spec.ffn import FFN, XIELU_CONSTANTS, Activation, Dense, Gated, MoE
from llmbench.spec.model import Norm, PerLayerEmbedding


def feed_forward(b: Builder, ffn: FFN, *, inputs_saved: bool = False) -> None:
    """Add the ops of a feed-forward.

    inputs_saved: whether the mixer of a parallel layer has already saved the input of the feed-forward.
    """
    match ffn:
        case Dense() | Gated():
            _dense(b, ffn, "ffn", "mlp", Dim(ffn.intermediate_size, "intermediate_size"), inputs_saved=inputs_saved)
        case MoE():
            _mixture(b, ffn, inputs_saved=inputs_saved)
        case _:
            assert_never(ffn)


def per_layer_input(b: Builder, kind: PerLayerEmbedding, ffn: FFN) -> None:
    """Add the sublayer that adds a per-layer embedding e to the residual stream: norm(out(act(gate(x)) · e)).

    Its activation is that of the feed-forward.
    """
    size = Dim(kind.size, "per_layer.size")
    b.linear("per_layer_input.gate_proj", "other", b.hidden, size)
    elements = b.tokens * size.size
    # The gate and act(gate) are saved here. All layers save their parts of one tensor of embeddings.
    saves = elements * (1 if b.fused else 2)
    b.elementwise("per_layer_input.act", "other", reads=2 * elements, writes=elements, saves=saves, role="act")
    b.linear("per_layer_input.out_proj", "other", size, b.hidden)
    b.norm("per_layer_input.norm", "norms", b.hidden, b.spec.norm)
    b.residual("per_layer_residual")


def _dense(
    b: Builder,
    ffn: Dense | Gated,
    name: str,
    component: Component,
    width: Dim,
    *,
    inputs_saved: bool,
) -> None:
    """Add the ops of down(act(up(x))) or down(act(gate(x)) * up(x)).

    The gate and up projections have a common input, which is saved once.

    inputs_saved: whether another op has already saved this input.
    """
    gated = isinstance(ffn, Gated)
    first = "gate_proj" if gated else "up_proj"
    saves = not inputs_saved
    b.linear(
        f"{name}.{first}",
        component,
        b.hidden,
        width,
        bias=ffn.bias,
        split="column",
        gathers=True,
        saves_input=saves,
    )
    if gated:
        b.linear(f"{name}.up_proj", component, b.hidden, width, bias=ffn.bias, split="column", saves_input=False)
    if isinstance(ffn, Dense) and ffn.activation_parameters:
        b.vector(f"{name}.act.weight", component, Dim(ffn.activation_parameters, "activation_parameters"))
        b.vector(f"{name}.act.constants", component, Dim(XIELU_CONSTANTS, "2"), buffer=True)
    result_saved = _activation(b, name, component, ffn.activation, gated, b.tokens * share(width.size, b.layout.tp))
    if isinstance(ffn, Dense) and ffn.channel_mixing:
        b.vector(f"{name}.time_mix_key", component, b.hidden)
        b.vector(f"{name}.time_mix_receptance", component, b.hidden)
        b.linear(f"{name}.receptance", component, b.hidden, b.hidden)
        outputs = b.tokens * b.hidden.size
        b.elementwise(f"{name}.gate", component, reads=2 * outputs, writes=outputs, saves=2 * outputs)
    if isinstance(ffn, Gated) and ffn.inner_norm:
        b.norm(f"{name}.inner_norm", "norms", width, b.spec.norm, rows=b.tokens, shards=b.layout.tp)
    b.linear(f"{name}.down_proj", component, width, b.hidden, bias=ffn.bias, split="row", saves_input=not result_saved)


_FROM_RESULT = ("relu", "sigmoid", "tanh")
"""Activations whose gradient can be computed from their output, without their input."""

_STEPS: dict[Activation, int] = {"quick_gelu": 2, "swiglu_oai": 4, "xielu": 4}
"""Number of tensors that plain PyTorch saves for these activations. Any other activation saves one tensor, its input.

quick_gelu also saves the sigmoid. swiglu_oai (gpt-oss) also saves the sigmoid and both inputs of its clamps. xielu
(Apertus) also saves a factor of its square, its exponential and the difference that is multiplied with a trained
number. It saves also one byte per element, which says on which side of 0 the input is.
"""


def _activation(
    b: Builder, name: str, component: Component, activation: Activation, gated: bool, elements: int
) -> bool:
    """Add the activation. Return whether it saves its output, so that the next op need not save its input.

    An activation saves its input, or its output if the gradient needs only the output. A gated activation saves both
    inputs. Plain PyTorch also saves act(gate), because the gradient of the product act(gate) * up needs it.
    """
    if b.fused:
        tensors = 2 if gated else 1
    else:
        tensors = (0 if gated and activation in _FROM_RESULT else _STEPS.get(activation, 1)) + (2 if gated else 0)
    saves, reads = elements * tensors, elements * (2 if gated else 1)
    # A gated activation computes act(gate) and then act(gate) * up. Both tensors exist at the end.
    steps = 0 if b.fused else _STEPS.get(activation, int(gated))
    forward_bytes = b.act(reads + elements * (steps + 1))
    b.elementwise(
        f"{name}.act",
        component,
        reads=reads,
        writes=elements,
        saves=saves,
        saved_bytes=elements if activation == "xielu" and not b.fused else 0,
        role="act",
        forward_bytes=forward_bytes,
    )
    return not gated and activation in _FROM_RESULT


def _weigh(b: Builder, moe: MoE, rows: int, elements: int, saves: bool) -> None:
    """Add the product of the experts' inner activations with the router's weights.

    Megatron fuses it with SwiGLU and with the squared ReLU. After any other activation, it is a step of its own, which
    saves its input.

    rows: number of (token, expert) pairs. elements: number of inner activations. saves: whether no earlier op has saved
        them.
    """
    fused = b.fused and (moe.gated or moe.activation == "relu2")
    saved = elements if saves and not fused else 0
    if not fused:
        b.elementwise(
            "ffn.experts.weigh", "experts", reads=elements, writes=elements, saves=saved, saved_bytes=4 * rows
        )


def _mixture(b: Builder, moe: MoE, *, inputs_saved: bool) -> None:
    """Add the ops of the router, the experts, the shared experts, and a dense feed-forward that reads the same input.

    Every token uses num_experts_per_tok experts, on any GPU. The figures assume that all experts process equally many
    tokens. So the experts of one GPU process tokens × num_experts_per_tok rows in total. A capacity factor gives each
    expert a buffer of capacity_factor × its even share of the rows, and the expert computes its whole buffer. An
    expert_capacity changes no figure, because the even share of the rows is below it.

    Plain PyTorch saves more than fused kernels: the tensors of `_router_saves`, and the outputs of the experts, which
    their weighted sum needs.

    Raises LayoutError if the experts cannot be split over the GPUs.
    """
    ep = b.layout.ep
    experts = Dim(moe.num_experts, "num_experts")
    if moe.num_experts % ep:
        raise LayoutError(
            f"layout ep={ep}: the {moe.num_experts} experts are not divisible by {ep}",
            hint="llmbench sizes only equal numbers of experts per GPU; vLLM also serves unequal ones",
        )
    choices = Dim(
        moe.num_experts + moe.zero_experts,
        "num_experts" if not moe.zero_experts else "(num_experts + zero_experts)",
    )
    scored = b.hidden
    if moe.router.hidden_size is not None:
        scored = _router_network(b, Dim(moe.router.hidden_size, "router.hidden_size"))
    wide = not b.fused and b.workload.activation_dtype != "fp32"  # whether the router converts its input to fp32
    b.linear(
        "ffn.router",
        "router",
        scored,
        choices,
        bias=moe.router.bias,
        saves_input=not (inputs_saved or wide),
        also_saved_bytes=0 if b.fused else _router_saves(b, moe, scored.size, choices.size, copies=wide),
    )
    inputs_saved = (inputs_saved or not wide) and not moe.separate_norms
    if moe.separate_norms:
        _router_scales(b, choices)
        b.norm("ffn.experts_norm", "norms", b.hidden, b.spec.norm, rows=b.tokens, saves_input=False)
    if moe.router.correction is not None:
        b.vector("ffn.router.correction", "router", choices, buffer=moe.router.correction == "buffer")
    # `chosen` counts only experts with weights. LongCat also has experts without weights. There, `chosen` is the mean
    # number per token, rounded up.
    chosen = share(moe.num_experts_per_tok * moe.num_experts, choices.size)
    # The GPUs of a tensor-parallel group divide their tokens among the experts' groups.
    tokens = share(b.tokens * b.layout.expert_tp, b.layout.tp)
    rows = tokens * chosen
    inputs = b.hidden
    if moe.latent_size is not None:
        inputs = Dim(moe.latent_size, "latent_size")
        b.linear("ffn.latent_in", "other", b.hidden, inputs, saves_input=not inputs_saved)
        inputs_saved = True
    spread, joined = _tensor_parallel_experts(b, moe, tokens, inputs.size)
    _experts(b, moe, experts, inputs, tokens, chosen, spread)
    if moe.latent_size is not None:
        b.linear("ffn.latent_out", "other", inputs, b.hidden)
    if moe.shared is not None:
        width = Dim(moe.shared.intermediate_size, "shared.intermediate_size")
        shape: Dense | Gated = (Gated if moe.gated else Dense)(
            intermediate_size=width.size, activation=moe.activation, bias=moe.shared.bias
        )
        _dense(b, shape, "ffn.shared", "shared_experts", width, inputs_saved=inputs_saved)
        inputs_saved = True
        if moe.shared.gate:
            b.linear("ffn.shared_gate", "shared_experts", b.hidden, Dim(1, "1"), saves_input=False)
            gated = b.tokens * b.hidden.size
            b.elementwise(
                "ffn.shared_scale", "shared_experts", reads=gated, writes=gated, saves=gated, role="shared_scale"
            )
    if moe.beside is not None:
        _dense(
            b,
            moe.beside,
            "ffn.beside",
            "mlp",
            Dim(moe.beside.intermediate_size, "beside.intermediate_size"),
            inputs_saved=inputs_saved,
        )
    if moe.separate_norms:
        b.norm("ffn.post_beside_norm", "norms", b.hidden, b.spec.norm, rows=b.tokens)
        b.norm("ffn.post_experts_norm", "norms", b.hidden, b.spec.norm, rows=b.tokens)
    combined = tokens * b.hidden.size
    outputs = 0 if b.fused else tokens * moe.num_experts_per_tok * inputs.size
    # Plain PyTorch allocates the inputs of the experts and three tensors of their outputs: in expert order, in token
    # order, and weighted.
    forward_bytes = b.act((rows if b.fused else 4 * rows) * inputs.size + combined)
    b.elementwise(
        "ffn.combine",
        "experts",
        reads=rows * inputs.size,
        writes=combined,
        saves=rows + outputs,
        role="combine",
        collectives=joined,
        forward_bytes=forward_bytes,
    )
    if moe.output_bias:
        b.vector("ffn.output_bias", "mlp", b.hidden)
    if moe.output_norm:
        b.norm("ffn.output_norm", "norms", b.hidden, b.spec.norm)


def _tensor_parallel_experts(
    b: Builder, moe: MoE, tokens: int, width: int
) -> tuple[tuple[Collective, ...], tuple[Collective, ...]]:
    """Return the collectives that give the experts their inputs, and those that join their outputs.

    The GPUs that split the matrices of an expert have partial sums of its outputs. If they all have the same tokens,
    an all-reduce adds the sums. If each GPU has tokens of its own (sequence parallelism), the tokens are gathered
    before, and the sums are scattered after the experts. If the tensor-parallel group is larger than an expert's group,
    it divides its tokens, and gathers the outputs. With a shared expert, the sums of both are added first, so the
    collectives of the shared expert suffice.

    tokens: number of tokens whose experts this GPU computes. width: width of the inputs and outputs of the experts.
    """
    tp, etp, sp = b.layout.tp, b.layout.expert_tp, b.layout.sp
    if etp == tp and (tp == 1 or moe.shared is not None or moe.beside is not None):
        return (), ()
    group: Literal["tp", "etp"] = "tp" if etp == tp else "etp"
    own, all_tokens = b.act(tokens * width), b.act(b.tokens * width)
    if etp > 1 and (sp or etp > tp):
        return (
            (Collective("all_gather", own, group, "forward"), Collective("reduce_scatter", own, group, "backward")),
            (Collective("reduce_scatter", own, group, "forward"), Collective("all_gather", own, group, "backward")),
        )
    spread, joined = [], []
    if etp > 1:
        joined.append(Collective("all_reduce", own, group, "forward"))
        spread.append(Collective("all_reduce", own, group, "backward"))
    if etp < tp and not sp:
        joined.append(Collective("all_gather", all_tokens, "tp", "forward"))
        spread.append(Collective("all_gather", all_tokens, "tp", "backward"))
    return tuple(spread), tuple(joined)


def _router_scales(b: Builder, choices: Dim) -> None:
    """Add the norm of the router's input, and the trained factors of the input and of the experts (Gemma 4)."""
    b.norm("ffn.router.norm", "router", b.hidden, Norm(weight=False), rows=b.tokens, saves_input=False)
    b.vector("ffn.router.scale", "router", b.hidden, saved_bytes=b.act(b.tokens * b.hidden.size))
    b.vector("ffn.router.expert_scale", "router", choices)


def _router_saves(b: Builder, moe: MoE, width: int, choices: int, *, copies: bool) -> int:
    """Return the bytes that plain PyTorch saves for a router, which computes in fp32.

    copies: whether the router saves fp32 copies of its input and of its matrix, because they have another format.

    The router also saves the probabilities of all experts. Sparsemixer saves probabilities and a mask for each selected
    expert. With softmax_topk and sigmoid_topk, only the selected experts have probabilities, and these are not counted.
    """
    scores = 4 * b.tokens * choices
    if moe.router.scores == "sparsemixer":
        scores = 5 * b.tokens * choices * moe.num_experts_per_tok
    elif moe.router.scores in ("softmax_topk", "sigmoid_topk"):
        scores = 0
    return scores + (4 * width * (b.tokens + choices) if copies else 0)


def _router_network(b: Builder, width: Dim) -> Dim:
    """Add the layers of a router that is a small network. Return the width of its last layer."""
    b.linear("ffn.router.in_proj", "router", b.hidden, width, bias=True)
    b.norm("ffn.router.norm", "router", width, b.spec.norm, rows=b.tokens)
    for name in ("fc1", "fc2"):
        b.linear(f"ffn.router.{name}", "router", width, width, bias=True)
    return width


def experts_read(moe: MoE, experts: int, tokens: int) -> float:
    """Return the expected number of experts whose weights are read: those that at least one of `tokens` tokens selects.

    Assumption: each token selects k of all E experts, with equal probability and independently of other tokens. The
    probability that a token does not select a given expert is 1 − k/E. So, of `experts` experts, the expected number is
    experts·(1 − (1 − k/E)^tokens). A router that was trained with load balancing comes close to this number. Other
    routers read fewer experts. With a capacity factor, all experts are read, because each expert computes its whole
    buffer.
    """
    if moe.capacity_factor is not None:
        return experts
    chance = moe.num_experts_per_tok / (moe.num_experts + moe.zero_experts)
    return experts * (1 - (1 - chance) ** tokens)


def _experts(
    b: Builder, moe: MoE, experts: Dim, inputs: Dim, tokens: int, chosen: int, spread: tuple[Collective, ...]
) -> None:
    """Add the matrices of the experts as grouped matrix products.

    tokens: number of tokens whose experts this GPU computes.
    chosen: number of experts with weights that one token uses.
    spread: the collectives that give the experts their inputs.
    """
    tp, ep, rows = b.layout.expert_tp, b.layout.ep, ceil(tokens * chosen * b.workload.imbalance)
    width = Dim(moe.intermediate_size, "intermediate_size")
    local_width, local_experts = share(width.size, tp), experts.size // ep
    padded = rows
    if moe.capacity_factor is not None:
        padded = local_experts * share(rows * round(moe.capacity_factor * 1000), 1000 * local_experts)
    read = experts_read(moe, local_experts, tokens * ep)
    dispatch = b.act(padded * inputs.size)
    exchange: tuple[Collective, ...] = ()
    if ep > 1:
        exchange = (
            Collective("all_to_all", dispatch, "ep", "forward"),
            Collective("all_to_all", dispatch, "ep", "backward"),
        )
    b.elementwise(
        "ffn.dispatch", "experts", reads=tokens * inputs.size, writes=padded * inputs.size, collectives=spread
    )
    # each item: (name of the matrix, whether its product saves its input)
    inner = [("gate_proj", True), ("up_proj", False)] if moe.gated else [("up_proj", True)]
    for matrix, saves in [*inner, ("down_proj", True)]:
        down = matrix == "down_proj"
        weights = inputs.size * local_width
        bias = 0 if not moe.bias else inputs.size if down else local_width
        before, after = (local_width, inputs.size) if down else (inputs.size, local_width)
        if down:
            inner_width = padded * local_width
            saves = not _activation(b, "ffn.experts", "experts", moe.activation, moe.gated, inner_width)
            if b.workload.weights_before_down:
                _weigh(b, moe, padded, inner_width, saves)
                saves = True
        flops = 2 * padded * weights
        label = f"{experts.label} × " + product(inputs, width).label
        if moe.bias:
            label += f" + {experts.label} × {inputs.label if down else width.label}"
        b.add(
            f"ffn.experts.{matrix}",
            "experts",
            "matmul",
            parameters=local_experts * (weights + bias),
            active_parameters=moe.num_experts_per_tok * (weights + bias),
            matmul_elements=chosen * weights,
            matrix=(local_experts, before, after),
            rows=padded,
            experts_met=read,
            shards=ep * tp,
            formula=label,
            forward_flops=flops,
            backward_flops=2 * flops,
            weight_bytes=bytes_of(round(read * (weights + bias)), b.workload.weight_dtype),
            read_bytes=b.act(padded * before),
            written_bytes=b.act(padded * after),
            saved_bytes=b.saved_input(padded * before) if saves else 0,
            # Plain PyTorch computes the gradient of each expert separately, and then stacks the gradients.
            backward_bytes=b.act(padded * (before + after))
            + (0 if b.fused else bytes_of(local_experts * weights, b.workload.weight_dtype)),
            collectives=exchange if matrix == inner[0][0] or down else (),
        )
