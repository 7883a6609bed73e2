"""Parameter counts of a model. They are sums over the ops of the model."""

from __future__ import annotations

from typing import get_args

import msgspec

from llmbench.sizing.dtypes import bytes_of
from llmbench.sizing.lower import lower, lower_next_token_prediction
from llmbench.sizing.op import Component, Op
from llmbench.sizing.workload import Layout, Workload
from llmbench.spec.model import ModelSpec

COMPONENTS: tuple[Component, ...] = get_args(Component)
TABLES = ("embedding", "position_embedding", "token_type_embedding", "lm_head")
"""The components that are embedding tables (of tokens, positions or token types), and the head."""

ONE_TOKEN = Workload.prefill(1)


class Parameters(msgspec.Struct, frozen=True, kw_only=True):
    """Parameter counts of a model. Each count is a number of elements.

    total: trained elements. A tied head counts once. Multi-token-prediction modules and buffers are not included.
    active: elements that one token uses. It includes only the experts that the token selects.
    active_no_embeddings: `active` without the embedding tables and the head.
    active_no_input_embedding: `active_no_embeddings` plus the head (vocab × width elements, and its bias). A tied head
        counts too.
    active_matmul: elements of the matrices with which one token is multiplied. The forward pass costs 2 × this number
        of FLOPs per token, without attention scores. This does not hold for models whose layers share one set of
        weights (ALBERT, Zamba), because shared weights count once.
    buffers: elements that are stored but not trained.
    next_token_prediction: elements of the multi-token-prediction modules, without the embedding and the head that they
        share with the model.
    rule_12_l_d2: the rule of thumb 12·L·d² (L layers, hidden size d). It does not include embeddings.
    components: trained elements of each component.
    layers: trained elements in one layer, for each kind of layer.
    """

    total: int
    active: int
    active_no_embeddings: int
    active_no_input_embedding: int
    active_matmul: int
    buffers: int
    next_token_prediction: int
    rule_12_l_d2: int
    components: dict[str, int]
    layers: dict[str, int]

    @property
    def bf16_bytes(self) -> int:
        """Bytes of the trained elements in bf16."""
        return bytes_of(self.total, "bf16")


def count_parameters(spec: ModelSpec, layout: Layout | None = None) -> Parameters:
    """Count the parameters of a model. With a layout, count the parameters on one GPU."""
    ops = lower(spec, ONE_TOKEN, layout or Layout())
    components: dict[str, int] = dict.fromkeys(COMPONENTS, 0)
    layers: dict[str, int] = {}
    active = matmul = buffers = head = tables = 0
    for op in ops:
        count = op.count
        components[op.component] += count * op.parameters
        active += count * op.active_parameters
        matmul += count * op.matmul_elements
        buffers += count * op.buffers
        if op.component in TABLES:
            tables += count * op.parameters
        if op.name == "lm_head":  # a tied head owns only its bias, so the shared matrix is added here
            head += op.parameters + (op.matmul_elements if op.tied else 0)
        elif op.name == "head.bias":
            head += op.parameters
        group = layer_group(op)
        if group:
            layers[group] = layers.get(group, 0) + op.parameters
    mtp = sum(op.count * op.parameters for op in lower_next_token_prediction(spec, ONE_TOKEN, layout or Layout()))
    num_layers = spec.num_hidden_layers + (len(spec.encoder.order) if spec.encoder else 0)
    return Parameters(
        total=sum(components.values()),
        active=active,
        active_no_embeddings=active - tables,
        active_no_input_embedding=active - tables + head,
        active_matmul=matmul,
        buffers=buffers,
        next_token_prediction=mtp,
        rule_12_l_d2=12 * num_layers * spec.hidden_size**2,
        components=components,
        layers=layers,
    )


def layer_group(op: Op) -> str:
    """Return the name of the kind of layer that contains an op, or an empty text if the op is outside the layers.

    In an encoder or in a multi-token-prediction module, the name begins with `encoder.` or `mtp.`.
    """
    if not op.layer:
        return ""
    return op.layer if op.stack == "decoder" else f"{op.stack}.{op.layer}"
