"""The part of a model on one GPU of a pipeline stage, as an engine loads it: weights, activations and cache rows."""

from __future__ import annotations

from collections.abc import Iterator
from fnmatch import fnmatchcase
from fractions import Fraction
from typing import Literal, NamedTuple

import msgspec

from llmbench.errors import LayoutError, SpecError
from llmbench.sizing.dtypes import DType, bits_of, bytes_of
from llmbench.sizing.formula import branches_of
from llmbench.sizing.kv_formats import token_bytes
from llmbench.sizing.lower import lower, lower_next_token_prediction
from llmbench.sizing.lower.builder import share
from llmbench.sizing.op import Cache, Op
from llmbench.sizing.serving.blocks import check_blocks
from llmbench.sizing.serving.layouts import check_layout, serving_layout
from llmbench.sizing.serving.pipeline import divided
from llmbench.sizing.stages import Stage, stages
from llmbench.sizing.stored_tensors import op_bytes
from llmbench.sizing.weight_recipe import WeightRecipe
from llmbench.sizing.workload import Layout, Workload
from llmbench.spec.engine import Engine
from llmbench.spec.ffn import MoE
from llmbench.spec.mixer import LatentAttention, MixerKind, branches
from llmbench.spec.model import ModelSpec

Visible = Literal["all", "window", "chunk", "state"]
"""The tokens that a layer keeps: all, those of a sliding window, those of a chunk, or a state of fixed size."""


class Rows(NamedTuple):
    """Layers that store equal cache rows.

    visible: the tokens that a layer keeps. tokens: width of the window or of the chunk.
    row_bytes: bytes per token and layer. It is a fraction if one row represents several tokens.
    state_bytes: bytes of the states of one sequence and layer.
    latent: whether the rows are those of latent attention.
    layers: number of layers.
    """

    visible: Visible
    tokens: int
    row_bytes: Fraction
    state_bytes: int
    latent: bool
    layers: int


class Shard(msgspec.Struct, frozen=True, kw_only=True):
    """One GPU's part of a model. All sizes are in bytes.

    stage: index of the pipeline stage.
    weights: weights as the engine stores them. padding: rows and columns that the engine adds to them.
    repeated_scales: what a kernel adds that converts weights, because it needs a scale for each output.
    rope: table of sines and cosines.
    moe: whether the model is a mixture of experts.
    draft: the part of the draft model on this GPU. None: there is none.
    layer: outputs of all ops of the widest layer for one token, as they exist at the peak of a step.
    widest: inputs and outputs of the widest op for one token. inner: inputs of the widest activation function.
    experts: what the experts of the widest layer need for one token that they compute (see `_experts_bytes`).
    hidden: hidden state of one token. vocabulary: logits per sequence. 0: the stage has no head.
    activations: number format of the activations.
    rows: the layers with a cache, those of the draft model included.
    products: number format of the matrix products.
    format, title: format of the weights as `--weights` reads it, and its description. format_name: its name alone.
    doubts: why the bytes of the weights may be inexact.
    """

    stage: int
    weights: int
    padding: int
    repeated_scales: int
    rope: int
    layer: int
    widest: int
    inner: int
    experts: int
    hidden: int
    vocabulary: int
    activations: DType
    rows: tuple[Rows, ...]
    products: DType
    format: str
    format_name: str
    title: str
    moe: bool
    draft: Shard | None = None
    doubts: tuple[str, ...] = ()

    @property
    def activation_bytes(self) -> int:
        """The bytes of one activation."""
        return bits_of(self.activations) // 8


def shards(
    spec: ModelSpec,
    layout: Layout,
    engine: Engine,
    *,
    weights: str | None = None,
    kv: str | None = None,
    draft: ModelSpec | None = None,
    fp32: DType | None = None,
) -> list[Shard]:
    """Return the part of each pipeline stage on one GPU.

    weights: format such as `gptq,bits=8`. None: the published files. kv: format of the cache. None: that of the
        activations. draft: model for speculative decoding. The last stage has its published files and its cache.
    fp32: format to which the engine converts published weights in fp32. None: it does not convert them.

    Raises SpecError for a model that does not decode or a draft model with another vocabulary, LayoutError if the
    layout does not divide the model, and UnsupportedError if the format of the published files is not known.
    """
    if not spec.decodes or spec.encoder is not None:
        raise SpecError(
            f"{spec.name} has an encoder, and `fit` sizes engines that serve decoders",
            hint=f"llmbench memory {spec.name} --phase inference",
        )
    known = engine.spec.kv_formats
    if kv is not None and known and kv not in known:
        raise SpecError(
            f"{engine.spec.title} has no cache in the format `{kv[:40]}`", hint=f"it has {', '.join(known)}"
        )
    check_layout(engine, layout)
    converted = weights is None and fp32 is not None and spec.weights.dtype == "fp32" and not spec.weights.format
    recipe = WeightRecipe(spec, fp32 if converted else weights or engine.spec.default_weights(spec.weights.format))
    _check_loads(engine, recipe)
    plain = _plain(recipe)
    workload = Workload.prefill(1, activation_dtype=plain, weight_dtype=plain)
    ops = lower(spec, workload, layout)
    check_blocks(spec, workload, engine, layout, ops, recipe)
    if engine.whole("mtp"):
        ops += _predictors(spec, workload, layout, engine.whole("mtp"))
    mtp = len({layer for op in ops if op.stack == "mtp" for layer in op.layers})
    cut = stages(spec, ops, divided(layout, spec.num_hidden_layers, mtp, engine.remainder))
    cache = engine.spec.indexed.get(kv or "", kv) if _selects(spec) else kv
    parts = [_shard(spec, stage, layout, engine, recipe, plain, cache or plain) for stage in cut]
    if converted:
        parts = [msgspec.structs.replace(part, title=f"{part.title}, converted from fp32") for part in parts]
    if draft is None:
        return parts
    _check_vocabulary(engine, spec, draft)
    return [*parts[:-1], _with_draft(parts[-1], draft, layout, engine, kv, fp32)]


def _selects(spec: ModelSpec) -> bool:
    """Return whether an indexer selects the latents to which a query attends, as in DeepSeek-V3.2."""
    mixers = (mixer for layer in spec.layers.values() for mixer in branches(layer.mixer))
    return any(isinstance(mixer, LatentAttention) and mixer.indexer is not None for mixer in mixers)


def made_on_loading(spec: ModelSpec, weights: str | None) -> bool:
    """Return whether an engine makes this format of the weights from the published files when it loads them.

    Engines convert weights in bf16, fp16 or fp32 to each other (`--dtype`). All other formats need files of their own.
    """
    own = spec.weights
    if weights is None or weights == own.format:
        return True
    return weights in ("bf16", "fp16", "fp32") and not (own.format or own.overrides or own.unknown)


def _check_vocabulary(engine: Engine, spec: ModelSpec, draft: ModelSpec) -> None:
    """Raise SpecError if the engine refuses the vocabulary of a draft model."""
    most, difference = engine.whole("draft_vocabulary"), abs(draft.vocab_size - spec.vocab_size)
    if difference > most:
        within = f"whose size differs by at most {most} tokens" if most else "of the same size"
        raise SpecError(
            f"draft model {draft.name}: its vocabulary has {draft.vocab_size:,} tokens, and that of {spec.name} has "
            f"{spec.vocab_size:,}; {engine.spec.title} needs a vocabulary {within}",
            hint="choose a smaller model with the same vocabulary, or, if your engine allows a difference, say "
            f"--engine {engine.spec.name},draft_vocabulary={difference}",
        )


def _with_draft(
    shard: Shard, draft: ModelSpec, layout: Layout, engine: Engine, kv: str | None, fp32: DType | None
) -> Shard:
    """Return the last stage with a draft model, which the GPUs of the stage split as they split the model itself.

    Raises LayoutError, with the name of the draft model, if the layout does not divide it.
    """
    try:
        (small,) = shards(draft, serving_layout(f"tp={layout.tp},dp={layout.dp}"), engine, kv=kv, fp32=fp32)
    except LayoutError as error:
        raise LayoutError(f"draft model {draft.name}: {error}", hint=error.hint) from None
    return msgspec.structs.replace(
        shard,
        draft=small,
        rows=(*shard.rows, *small.rows),
        doubts=(*shard.doubts, *small.doubts, "the CUDA graphs and activations of the draft model are not counted"),
    )


def _check_loads(engine: Engine, recipe: WeightRecipe) -> None:
    """Raise SpecError if the engine does not load weights in a format."""
    known = engine.spec.weight_formats
    if known and not any(fnmatchcase(recipe.format_name, pattern) for pattern in known):
        raise SpecError(
            f"{engine.spec.title} does not load weights in the format `{recipe.format_name}`",
            hint=f"it loads {', '.join(known)}: choose one with --weights",
        )


def _predictors(spec: ModelSpec, workload: Workload, layout: Layout, count: int) -> list[Op]:
    """Return the ops of the first `count` modules for multi-token prediction. Each has a cache like its kind of layer.

    Raises SpecError if the model has fewer modules.
    """
    mtp = spec.next_token_prediction
    if mtp is None or mtp.count < count:
        have = 0 if mtp is None else mtp.count
        raise SpecError(f"{spec.name} has {have} modules for multi-token prediction, not {count}")
    chosen = msgspec.structs.replace(mtp, count=count)
    ops = lower_next_token_prediction(msgspec.structs.replace(spec, next_token_prediction=chosen), workload, layout)
    caches = {op.name.rpartition("}")[2]: op.cache for op in lower(spec, workload, layout) if op.layer == mtp.layer}
    return [msgspec.structs.replace(op, cache=caches.get(op.name.rpartition("}")[2])) for op in ops]


def _plain(recipe: WeightRecipe) -> DType:
    """Return the number format of the activations: that of the weights that are not quantised."""
    return recipe.products if recipe.products in ("fp32", "fp16") else "bf16"


def _shard(
    spec: ModelSpec, stage: Stage, layout: Layout, engine: Engine, recipe: WeightRecipe, plain: DType, kv: str
) -> Shard:
    stored = sum(tensors.bytes for tensors in recipe.towers(layout.tp)) if stage.index == 0 else 0
    padding = repeated = 0
    sizes: dict[int, tuple[int, int, int]] = {}
    for op, layer in _instances(stage):
        if id(op) not in sizes or recipe.by_module:
            own = 0 if _on_host(op, spec, layout, engine) else op_bytes(op, layer, recipe, loaded=True)
            more = _padding(op, layer, recipe, engine, spec, layout) if own else 0
            sizes[id(op)] = own, more, _repeated_scales(op, layer, recipe) if own else 0
        stored += sizes[id(op)][0]
        padding += sizes[id(op)][1]
        repeated += sizes[id(op)][2]
    ops = [op for op, _ in stage.counts]
    head = any(op.name == "lm_head" for op in ops)
    vocabulary = _padded(spec.vocab_size, engine.whole("vocabulary_multiple", 1))
    return Shard(
        stage=stage.index,
        weights=stored,
        padding=padding,
        repeated_scales=repeated,
        rope=rope_table_bytes(spec) if engine.whole("rope_table") else 0,
        layer=max(map(_layer_bytes, _by_layer(stage)), default=0),
        widest=max((op.read_bytes + op.written_bytes for op in ops if op.name != "lm_head"), default=0),
        inner=max((op.read_bytes for op in ops if op.role in ("act", "gate")), default=0),
        experts=max((_experts_bytes(spec, layer, plain) for layer in _by_layer(stage)), default=0),
        hidden=bytes_of(spec.hidden_size, plain),
        vocabulary=vocabulary if head else 0,
        activations=plain,
        rows=tuple(_rows(spec, stage, engine, plain, kv)),
        products=recipe.products,
        format=recipe.text,
        format_name=recipe.format_name,
        title=recipe.title,
        moe=spec.is_moe,
        doubts=(*recipe.doubts, *_tower_doubts(recipe, engine)),
    )


def _instances(stage: Stage) -> Iterator[tuple[Op, int | None]]:
    """Return each op of a stage with the index of its layer in the model."""
    for chunk in stage.chunks:
        for op in (*chunk.before, *chunk.after):
            yield op, None
        for index, ops in enumerate(chunk.layers, chunk.first_layer):
            for op in ops:
                yield op, index


def _by_layer(stage: Stage) -> list[tuple[Op, ...]]:
    """Return the ops of one layer of each kind."""
    kinds = {ops[0].layer: ops for chunk in stage.chunks for ops in chunk.layers if ops}
    return list(kinds.values())


def _layer_bytes(ops: tuple[Op, ...]) -> int:
    """Return the bytes that exist at the widest moment of a layer, for one token.

    A compiled graph frees the tensors of a layer only when it ends. At the last matrix product, the outputs of all
    earlier products, norms and activation functions exist, and the residual stream twice. The norm before the first
    product belongs to the graph of the layer before.
    """
    products = [op for op in ops if op.kind in ("matmul", "attention", "scan", "conv")]
    if not products:
        return 0
    stream = max((op.written_bytes for op in ops if op.role == "residual"), default=0)
    acts = sum(op.written_bytes for op in ops if op.role in ("act", "gate"))
    return 3 * stream + acts + sum(op.written_bytes for op in products[:-1])


def _experts_bytes(spec: ModelSpec, ops: tuple[Op, ...], plain: DType) -> int:
    """Return the bytes that the experts of a layer need for one token that they compute, without its hidden states.

    For each selected expert, on this GPU or not, there are the inner values, and one buffer for the outputs of the
    first and of the last product (vLLM, fused_moe: intermediate_cache13 and intermediate_cache2).
    """
    ffn = spec.layers[ops[0].layer].ffn
    matrices = {op.name: op.matrix for op in ops if op.component == "experts" and op.matrix}
    down = next((matrix for name, matrix in matrices.items() if name.endswith("down_proj")), None)
    if not isinstance(ffn, MoE) or down is None:
        return 0
    _, width, hidden = down
    inner = sum(matrix[2] for name, matrix in matrices.items() if not name.endswith("down_proj"))
    return bytes_of(ffn.num_experts_per_tok * (max(inner, hidden) + width), plain)


def rope_table_bytes(spec: ModelSpec) -> int:
    """Return the bytes of the sines and cosines that vLLM stores for every position, in bf16.

    All layers with the same rotation share one table (vllm/model_executor/layers/rotary_embedding).
    """
    widths = set()
    for mixer in spec.attentions:
        positions, heads = spec.positions_of(mixer), mixer.rotated_heads
        if positions.acts_on == "queries and keys" and heads is not None:
            widths.add((positions, heads.width))
    return sum(2 * (spec.max_position_embeddings or 0) * width for _, width in widths)


def _padded(size: int, multiple: int) -> int:
    return -(-size // multiple) * multiple


def _padding(op: Op, layer: int | None, recipe: WeightRecipe, engine: Engine, spec: ModelSpec, layout: Layout) -> int:
    """Return the bytes by which an engine pads the weights of one instance of an op."""
    if op.matrix is None:
        return 0
    if op.name in ("embedding", "lm_head") and engine.whole("vocabulary_multiple"):
        rows = share(_padded(spec.vocab_size, engine.whole("vocabulary_multiple")), layout.tp)
        more = rows - share(spec.vocab_size, layout.tp)
        return more * op_bytes(op, layer, recipe, loaded=True) // max(1, share(spec.vocab_size, layout.tp))
    storage = recipe.storage(op, layer)
    multiple = engine.whole("mxfp4_multiple")
    if multiple and storage is not None and storage.name == "mxfp4":
        copies, inputs, outputs = op.matrix
        return copies * outputs * (_padded(inputs, multiple) - inputs) // 2  # the 4-bit values, not their scales
    return 0


def _tower_doubts(recipe: WeightRecipe, engine: Engine) -> list[str]:
    """Return why the activations may be inexact: engines also run the towers in their largest step."""
    towers = [tensors.kind for tensors in recipe.towers()]
    if not towers or engine.spec.rule == "ideal":
        return []
    parts = ", ".join(towers)
    return [f"the activations of the parts for other modalities ({parts}) in the engine's largest step are not counted"]


def _on_host(op: Op, spec: ModelSpec, layout: Layout, engine: Engine) -> bool:
    """Return whether an engine keeps the embedding table in the memory of the CPU. A tied head needs it on the GPU."""
    tied = spec.tie_word_embeddings and layout.pp == 1
    return op.name == "embedding" and not tied and bool(engine.whole("host_embedding"))


def _repeated_scales(op: Op, layer: int | None, recipe: WeightRecipe) -> int:
    """Return the bytes that the scales of an op gain if a kernel converts its weights to the format of the activations.

    Marlin needs one scale per output and group of inputs, in the format of the activations (vLLM's
    prepare_fp8_layer_for_marlin). So a scale per block of 128 × 128 is repeated 128 times.
    """
    storage = recipe.storage(op, layer)
    if storage is None or op.owned_matrix is None:
        return 0
    copies, inputs, outputs = op.owned_matrix
    gained = 0
    for tensor in storage.tensors:
        if tensor.name in ("weight_scale", "weight_scale_inv") and tensor.outputs != 1:
            columns = -(-inputs // tensor.inputs) if tensor.inputs else 1
            blocks = -(-outputs // tensor.outputs) if tensor.outputs else 1
            stored = bits_of("fp32") if tensor.loaded_bits is None else tensor.loaded_bits
            gained += copies * columns * (outputs * 16 - blocks * stored) // 8
    return gained


def _state_bytes(cache: Cache, engine: Engine, plain: DType) -> int:
    """Return the bytes of the states of one sequence and layer. plain: format of the activations."""
    stated = cache.state_dtype if engine.whole("config_states", 1) and "state_bytes" not in engine.replaced else None
    recurrent = bytes_of(cache.state, stated) if stated else cache.state * _element_bytes(engine, "state_bytes", plain)
    return recurrent + cache.conv_state * _element_bytes(engine, "conv_state_bytes", plain)


def _element_bytes(engine: Engine, key: str, plain: DType) -> int:
    """Return the bytes per element of a kind of state."""
    return engine.whole(key) or bits_of(plain) // 8


def _rows(spec: ModelSpec, stage: Stage, engine: Engine, plain: DType, kv: str) -> Iterator[Rows]:
    """Return the layers of a stage that store equal cache rows. All states of a layer belong together."""
    fp8_indexer = engine.spec.rule != "ideal"  # engines store the keys of an indexer in fp8 with a scale
    found: dict[tuple[Visible, int, Fraction, int, bool], int] = {}
    states: dict[str, tuple[int, int]] = {}
    for op, count in stage.counts:
        cache = op.cache
        if cache is None:
            continue
        mixers: list[MixerKind] = [*branches_of(op, spec.layers[op.layer])]
        row = token_bytes(cache.row, kv) + token_bytes(cache.indexer_row, kv, indexer=True, engine=fp8_indexer)
        state = _state_bytes(cache, engine, plain)
        visible: Visible = "all"
        if cache.span is not None:
            chunked = any(getattr(mixer, "attention_chunk_size", None) for mixer in mixers)
            visible = "chunk" if chunked else "window"
        latent = any(isinstance(mixer, LatentAttention) for mixer in mixers)
        if row:
            key = (visible, cache.span or 0, row, 0, latent)
            found[key] = found.get(key, 0) + count
        if state:
            states[op.layer] = states.get(op.layer, (0, 0))[0] + state, count
    for state, count in states.values():
        key = ("state", 0, Fraction(0), state, False)
        found[key] = found.get(key, 0) + count
    for (visible, tokens, row, state, latent), count in found.items():
        yield Rows(visible, tokens, row, state, latent, count)
