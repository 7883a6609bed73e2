"""All formulas of llmbench. They compute the op table from a ModelSpec, a Workload and a Layout.

`lower` goes through a model from its embedding to its loss. Each op states the parameters, FLOPs, bytes moved, saved
activations and communication of one module on one GPU. Parameters, FLOPs, KV cache, memory and roofline are sums over
these ops.
"""

from __future__ import annotations

from typing import assert_never

import msgspec

from llmbench.errors import LayoutError, SpecError
from llmbench.sizing.dtypes import bytes_of
from llmbench.sizing.lower.attention import attention
from llmbench.sizing.lower.builder import Builder, Dim, product, share
from llmbench.sizing.lower.ffn import feed_forward, per_layer_input
from llmbench.sizing.lower.head import head_and_loss
from llmbench.sizing.lower.mixers import lower_mixer
from llmbench.sizing.lower.pairs import visible_pairs
from llmbench.sizing.lower.streams import join_head, join_streams
from llmbench.sizing.op import Collective, Component, Op
from llmbench.sizing.workload import Layout, Workload
from llmbench.spec.mixer import branches
from llmbench.spec.model import ExtraWeight, Layer, ModelSpec, PerLayerEmbedding, Stack
from llmbench.spec.position import (
    Alibi,
    LearnedPositions,
    NoPositions,
    Positions,
    RelativeBias,
    Rope,
    SinusoidalPositions,
)

__all__ = ["lower", "lower_next_token_prediction", "visible_pairs"]

ONE_GPU = Layout()


def lower(spec: ModelSpec, workload: Workload, layout: Layout = ONE_GPU) -> list[Op]:
    """Return the ops of the whole model on one GPU, in the order of the forward pass.

    If the GPUs have shares of different size, the figures belong to the GPU with the largest share. The list is not
    divided into pipeline stages (see `stages`), and it does not contain multi-token-prediction modules (see
    `lower_next_token_prediction`).

    Raises LayoutError if the model cannot be divided as the layout says. Raises SpecError for a decoding step of an
    encoder.
    """
    if workload.phase == "decode" and not spec.decodes:
        raise SpecError(f"{spec.name} is an encoder: it reads all tokens at once and has no decoding step")
    if layout.ep > 1 and not spec.is_moe:
        raise LayoutError(f"layout ep={layout.ep}: {spec.name} has no experts")
    ops: list[Op] = []
    if spec.encoder is not None and spec.encoder.length is not None:
        workload = msgspec.structs.replace(workload, encoder_len=spec.encoder.length)
    if spec.encoder is not None and workload.phase != "decode":
        own = msgspec.structs.replace(spec, positions=spec.encoder.positions or NoPositions())
        encoder = Builder(own, workload, layout, encoder=True)
        encoder.at("encoder.", "", ())
        _extra(encoder, spec.encoder.extra)
        _encoder_embedding(encoder, spec.encoder)
        _stack(encoder, spec.encoder.layers, spec.encoder.order)
        encoder.at("encoder.", "", ())
        if spec.encoder.final_norm:
            encoder.norm("final_norm", "norms", encoder.hidden, spec.norm)
        # the cross-attention of every decoder layer reads this tensor, which is saved once
        output = encoder.tokens * encoder.hidden.size
        encoder.elementwise("output", "other", reads=0, writes=0, saves=output)
        ops += encoder.ops
    decoder = Builder(spec, workload, layout)
    _embedding(decoder)
    _stack(decoder, spec.layers, spec.order)
    decoder.at("", "", ())
    _extra(decoder, spec.extra)
    _head(decoder)
    return ops + decoder.ops


def lower_next_token_prediction(spec: ModelSpec, workload: Workload, layout: Layout = ONE_GPU) -> list[Op]:
    """Return the ops of the multi-token-prediction modules (DeepSeek-V3, arXiv 2412.19437, section 2.2).

    Each module applies a norm to the hidden state and a norm to the embedding of the next token. It projects the two
    vectors to one vector, and then runs a layer and a final norm. It uses the embedding and the head of the model.

    In training, the list also has the lookups in the embedding, and a product with the head and a loss for each module.
    With more than one pipeline stage, the stage of the modules stores a copy of the embedding, unless the head is this
    table. The projection is split over the tensor-parallel group, as in Megatron.
    """
    mtp = spec.next_token_prediction
    if mtp is None:
        return []
    train = workload.phase == "train"
    b = Builder(spec, workload, layout)
    b.stack = "mtp"
    if train:
        b.at("mtp.{}.", mtp.layer, range(1 if layout.pp > 1 and not spec.tie_word_embeddings else 0))
        vocab = Dim(spec.vocab_size, "vocab_size")
        if b.layers:
            _table(b, "embedding", "embedding", vocab, b.hidden, shards=layout.tp)
    b.at("mtp.{}.", mtp.layer, range(mtp.count))
    b.norm("embedding_norm", "norms", b.hidden, spec.norm)
    b.norm("hidden_norm", "norms", b.hidden, spec.norm)
    b.linear("proj", "other", product(Dim(2, "2"), b.hidden), b.hidden, split="column" if train else "none")
    _layer(b, spec.layers[mtp.layer])
    b.norm("final_norm", "norms", b.hidden, spec.norm)
    if train:
        for index in range(mtp.count):
            b.at(f"mtp.{index}.", "", ())
            head_and_loss(b, b.hidden)
    return b.ops


def _stack(b: Builder, layers: dict[str, Layer], order: tuple[str, ...]) -> None:
    where: dict[str, list[int]] = {}
    for index, name in enumerate(order):
        where.setdefault(name, []).append(index)
    prefix = "encoder.layers.{}." if b.stack == "encoder" else "layers.{}."
    for name, indices in where.items():
        b.at(prefix, name, indices)
        start = len(b.ops)
        _layer(b, layers[name])
        if layers[name].shared_weights is not None and len(indices) > 1:
            b.ops[start:] = [part for op in b.ops[start:] for part in _split_shared(op)]


def _split_shared(op: Op) -> list[Op]:
    """Split an op of layers that share weights. The op of the first layer owns the weights, the op of later layers only
    uses them."""
    if not (op.parameters or op.buffers or op.matmul_elements):
        return [op]
    unowned = {"parameters": 0, "active_parameters": 0, "matmul_elements": 0, "buffers": 0, "formula": ""}
    return [
        msgspec.structs.replace(op, layers=op.layers[:1]),
        msgspec.structs.replace(op, layers=op.layers[1:], **unowned),
    ]


def _layer(b: Builder, layer: Layer) -> None:
    norm = b.spec.norm if layer.norm is None else layer.norm
    parallel = layer.placement in ("parallel", "parallel_two")

    def norms(name: str, *, before: bool) -> None:
        """Add the norm before or after a sublayer, if the layer's placement has a norm there."""
        where = ("pre", "sandwich", "parallel_two") if before else ("output", "sandwich")
        if layer.placement in where or (before and name == "ffn" and layer.placement == "pre_ffn"):
            # Both norms of a parallel_two layer read the residual stream. The norm of the first sublayer saves it.
            saved = layer.placement == "parallel_two" and name != sublayers[0]
            b.norm(f"{'' if before else 'post_'}{name}_norm", "norms", b.hidden, norm, saves_input=not saved)

    if layer.placement == "parallel":
        b.norm("norm", "norms", b.hidden, norm)
    sublayers = []
    if layer.mixer is not None:
        sublayers.append("mixer")
    if layer.cross_attention is not None:
        sublayers.append("cross")
    if layer.ffn is not None:
        sublayers.append("ffn")
    for sublayer in sublayers:
        if b.spec.hyper_connections is not None:
            join_streams(b, f"{sublayer}_hc", b.spec.hyper_connections)
        norms(sublayer, before=True)
        if sublayer == "mixer":
            for mixer in branches(layer.mixer):
                lower_mixer(b, mixer)
        elif sublayer == "cross":
            assert layer.cross_attention is not None
            attention(b, layer.cross_attention, name="cross_attention", cross=True)
        else:
            assert layer.ffn is not None
            feed_forward(b, layer.ffn, inputs_saved=layer.placement == "parallel" and layer.mixer is not None)
        norms(sublayer, before=False)
        if layer.skip_scale != 0 and (not parallel or sublayer == sublayers[-1]):
            b.residual(f"{sublayer}_residual")
        if layer.placement == "post":
            b.norm(f"{sublayer}_norm", "norms", b.hidden, norm)
    if b.spec.embedding.per_layer is not None and b.stack == "decoder":
        assert layer.ffn is not None
        per_layer_input(b, b.spec.embedding.per_layer, layer.ffn)
    if layer.output_scale:
        b.vector("output_scale.scale", "other", Dim(1, "1"), buffer=True)
    _extra(b, layer.extra)


def _embedding(b: Builder) -> None:
    """Add the embedding tables before the layers. A lookup reads and writes one row per token and costs no FLOPs."""
    spec = b.spec
    tp = b.layout.tp
    size = b.hidden if spec.embedding.size is None else Dim(spec.embedding.size, "embedding_size")
    vocab = Dim(spec.vocab_size, "vocab_size")

    def table(name: str, component: Component, rows: Dim, *, shards: int = 1) -> None:
        _table(b, name, component, rows, size, shards=shards)

    _table(b, "embedding", "embedding", vocab, size, shards=tp, tied=spec.tie_word_embeddings)
    _added_positions(b, spec.positions, b.hidden if spec.embedding.positions_after else size, "num_positions")
    if spec.embedding.token_types:
        table("token_type_embedding", "token_type_embedding", Dim(spec.embedding.token_types, "token_types"))
    if spec.embedding.norm:
        b.norm("embedding_norm", "norms", size, spec.norm)
    if spec.embedding.size is not None:
        b.linear("embedding_projection", "other", size, b.hidden, bias=spec.embedding.projection_bias)
    b.embedding_dropout()
    if spec.embedding.per_layer is not None:
        _per_layer_embeddings(b, spec.embedding.per_layer)


def _per_layer_embeddings(b: Builder, kind: PerLayerEmbedding) -> None:
    """Add the table of the per-layer embeddings, and the projection that is added to them."""
    size = Dim(kind.size, "per_layer.size")
    layers = Dim(b.spec.num_hidden_layers, "num_hidden_layers")
    width = product(layers, size)
    _table(b, "per_layer.table", "embedding", Dim(kind.vocab_size, "per_layer.vocab_size"), width, saves_ids=False)
    # The first norm of the first layer saves the embedding too, so the projection saves no tensor of its own.
    b.linear("per_layer.projection", "other", b.hidden, width, saves_input=False)
    b.norm("per_layer.norm", "norms", size, b.spec.norm, rows=b.tokens * layers.size)
    elements = b.tokens * width.size
    b.elementwise("per_layer.sum", "embedding", reads=2 * elements, writes=elements, saves=elements)


def _added_positions(b: Builder, positions: Positions, width: Dim, rows_label: str) -> None:
    """Add the op of a position encoding that is added to the embedding, or that looks up its sines and cosines.

    width: width of the embedding. rows_label: name of the spec field that gives the rows of a table of positions.
    """
    match positions:
        case LearnedPositions(num_positions=rows):
            _table(b, "position_embedding", "position_embedding", Dim(rows, rows_label), width)
        case SinusoidalPositions():
            stream = b.stream_tokens * width.size
            b.elementwise("position_encoding", "position_embedding", reads=stream, writes=stream)
        case Rope(table_rows=int(rows)):
            turned = next(mixer.rotated_heads for mixer in b.spec.attentions if mixer.rotated_heads is not None)
            _table(b, "rotary_table", "position_embedding", Dim(rows, "table_rows"), Dim(turned.width, turned.field))
        case Rope() | Alibi() | RelativeBias() | NoPositions():
            pass  # the mixers apply RoPE and the biases on scores
        case _:
            assert_never(positions)


def _table(
    b: Builder,
    name: str,
    component: Component,
    rows: Dim,
    size: Dim,
    *,
    shards: int = 1,
    tied: bool = False,
    saves_ids: bool = True,
) -> None:
    """Add an embedding table with `rows` rows of `size` elements.

    saves_ids: whether the op saves the token ids. If false, another table saves them.
    """
    local_rows = share(rows.size, shards)
    parameters = local_rows * size.size
    looked_up = b.act(b.tokens * size.size)
    b.add(
        name,
        component,
        "embedding",
        parameters=parameters,
        active_parameters=parameters,
        matrix=(1, local_rows, size.size),
        tied=tied,
        shards=shards,
        formula=f"{rows.label} × {size.label}",
        read_bytes=looked_up,
        written_bytes=looked_up,
        saved_bytes=8 * b.tokens if saves_ids else 0,  # int64
        collectives=_row_sums(b, looked_up) if shards > 1 else (),
    )


def _row_sums(b: Builder, looked_up: int) -> tuple[Collective, ...]:
    """Return the collectives of a table whose rows are split over the tensor-parallel group.

    Each GPU looks up the tokens of its own rows and has zeros for the others. The sum has the rows of all tokens.
    """
    if not b.layout.sp:
        return (Collective("all_reduce", looked_up, "tp", "forward"),)
    return (
        Collective("reduce_scatter", looked_up, "tp", "forward"),
        Collective("all_gather", looked_up, "tp", "backward"),
    )


def _encoder_embedding(b: Builder, stack: Stack) -> None:
    """Add the tables and the norm of the encoder's embedding.

    An encoder without its own token table uses the table of the decoder.
    """
    if stack.vocab_size is not None:
        rows = Dim(stack.vocab_size, "encoder.vocab_size")
        _table(b, "embedding", "embedding", rows, b.hidden, shards=b.layout.tp)
    _added_positions(b, b.spec.positions, b.hidden, "encoder.num_positions")
    if stack.embedding_norm:
        b.norm("embedding_norm", "norms", b.hidden, b.spec.norm)
    b.embedding_dropout()


def _head(b: Builder) -> None:
    """Add the final norm and the head. In training, also add the loss, which covers every position."""
    spec = b.spec
    size = b.hidden if spec.embedding.size is None else Dim(spec.embedding.size, "embedding_size")
    if spec.head.size is not None:
        size = Dim(spec.head.size, "head.size")
    if spec.hyper_connections is not None and spec.hyper_connections.learned_head:
        join_head(b, spec.hyper_connections)
    if spec.final_norm:
        b.norm("final_norm", "norms", b.hidden, spec.norm)
    if spec.head.transform is not None:
        b.linear("head.transform", "other", b.hidden, size, bias=spec.head.transform_bias)
        inner = b.tokens * size.size
        b.elementwise("head.act", "other", reads=inner, writes=inner, saves=inner, role="act")
        b.norm("head.norm", "other", size, spec.norm)
    elif size is not b.hidden:
        b.linear("head.projection", "other", b.hidden, size)
    head_and_loss(b, size)


def _extra(b: Builder, extra: tuple[ExtraWeight, ...]) -> None:
    for weight in extra:
        elements = 1
        for size in weight.shape:
            elements *= size
        width = Dim(elements, " × ".join(map(str, weight.shape)))
        if weight.role == "matmul":
            inputs, outputs = weight.shape[-1], elements // weight.shape[-1]
            b.linear(
                weight.name,
                weight.component,
                Dim(inputs, str(inputs)),
                Dim(outputs, str(outputs)),
                saves_input=False,
            )
        elif weight.role == "convolution":
            _convolution(b, weight, elements, width.label)
        elif weight.role == "table":
            row = weight.shape[-1]
            _table(
                b,
                weight.name,
                weight.component,
                Dim(elements // row, str(elements // row)),
                Dim(row, str(row)),
            )
        elif weight.role == "unused":
            b.add(
                weight.name,
                weight.component,
                "elementwise",
                parameters=elements,
                active_parameters=elements,
                formula=width.label,
            )
        else:
            b.vector(weight.name, weight.component, width, buffer=weight.role == "buffer")


def _convolution(b: Builder, weight: ExtraWeight, elements: int, formula: str) -> None:
    """Add a convolution over time. It costs one multiply-add per element and step. Its bias is an op of its own."""
    outputs, inputs, _ = weight.shape
    steps = weight.uses * b.tokens
    flops = 2 * steps * elements
    b.add(
        weight.name,
        weight.component,
        "matmul",
        parameters=elements,
        active_parameters=elements,
        rows=steps,
        formula=formula,
        forward_flops=flops,
        backward_flops=2 * flops,
        weight_bytes=bytes_of(elements, b.workload.weight_dtype),
        read_bytes=b.act(steps * inputs),
        written_bytes=b.act(steps * outputs),
        saved_bytes=b.act(steps * inputs),
    )
