"""Parameters of a model: sums over its ops."""

from __future__ import annotations

from typing import get_args

import msgspec

from llmbench.sizing.lower import lower, lower_next_token_prediction
from llmbench.sizing.op import Component, Op
from llmbench.sizing.workload import Layout, Workload
from llmbench.spec.model import ModelSpec

COMPONENTS: tuple[Component, ...] = get_args(Component)
TABLES = ("embedding", "position_embedding", "token_type_embedding", "lm_head")
"""The tables that tokens look up, and the head."""

ONE_TOKEN = Workload.prefill(1)


class Parameters(msgspec.Struct, frozen=True, kw_only=True):
    """Counts of elements; all integers.

    total: trained elements; a tied head counts once; without multi-token prediction and buffers. active: elements that
    one token uses: total with only the chosen experts of each layer. active_no_embeddings: active without tables and
    head. active_no_input_embedding: active_no_embeddings plus the head (vocab × width, tied or not, and its bias).
    active_matmul: elements of the matrices that one token is multiplied with. 2 × this is a token's forward FLOPs
    without
        scores, except where layers share one set of weights (ALBERT, Zamba), which counts once here as in all counts.
    buffers: elements stored but not trained. next_token_prediction: elements of the extra modules, without the shared
        embedding and head. rule_12_l_d2: the rule of thumb 12·L·d², which leaves out embeddings.
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


def count_parameters(spec: ModelSpec, layout: Layout | None = None) -> Parameters:
    """All counts of a model, or of one GPU's share under a layout."""
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
        if op.name == "lm_head":  # a tied head's own parameters are its bias
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
    """The kind of layer that an op is in, with its stack if that is not the decoder; empty outside layers."""
    if not op.layer:
        return ""
    return op.layer if op.stack == "decoder" else f"{op.stack}.{op.layer}"
