"""The formulas of the memory of one GPU, with numbers. Each part of the peak has one formula, and so have the terms
that its numbers come from: parameters per GPU, and the saved bytes of a layer."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from llmbench.sizing.backward import Moment, walk
from llmbench.sizing.cache_formulas import cache_formulas
from llmbench.sizing.dtypes import Tensors, bits_of
from llmbench.sizing.formula import Formula, counted, divided, plus, shared, times
from llmbench.sizing.memory import CONTEXT_BYTES, Memory, ServingRun, widest_op
from llmbench.sizing.op import Op
from llmbench.sizing.peak import largest_moment
from llmbench.sizing.recipe import state_tensors
from llmbench.sizing.recompute import checkpoint_terms
from llmbench.sizing.stages import Chunk, Stage
from llmbench.sizing.training_run import TrainingRun
from llmbench.sizing.weights import stage_tensors
from llmbench.sizing.workload import Layout

MIB = 2**20


def training_formulas(run: TrainingRun, memory: Memory) -> list[Formula]:
    """Return the formulas of the peak of a training step. `memory`: the memory of the same run."""
    stage = run.stages[memory.stage]
    resident = run.resident(stage)
    moment, place, _ = largest_moment(run, stage, resident)
    chunk = stage.chunks[place]
    parts = memory.parts_bytes
    formulas = [
        *parameter_formulas(stage, run.layout),
        Formula(term="weights", text=_weights(run, stage, moment), value=parts["weights"]),
        Formula(term="gradients", text=_gradients(run, stage, chunk, moment), value=parts["gradients"]),
        Formula(term="optimizer and master weights", text=_states(run, stage, moment), value=parts["optimizer"]),
        *_saved_by_layers(run, stage),
        Formula(term="activations", text=_activations(run, stage, place, moment), value=parts["activations"]),
    ]
    if moment.logits:
        formulas.append(Formula(term="logits and loss", text=_logits(run, chunk, moment), value=moment.logits))
    return formulas + peak_formulas(memory)


def serving_formulas(run: ServingRun, memory: Memory) -> list[Formula]:
    """Return the formulas of the memory of serving. `memory`: the memory of the same run."""
    stage = run.stages()[memory.stage]
    ops, parts = stage.ops, memory.parts_bytes
    stored = stage_tensors(stage, run.weight_recipe(), run.layout.tp)
    formulas = [
        *parameter_formulas(stage, run.layout),
        Formula(
            term="weights",
            text=tensors_text(each for each, count in stored for _ in range(count)),
            value=parts["weights"],
        ),
    ]
    widest = widest_op(ops)
    if widest is not None:
        text = f"{widest.read_bytes:,} read + {widest.written_bytes:,} written by {widest.name.replace('{}', 'N')}"
        formulas.append(Formula(term="activations", text=text, value=parts["activations"]))
    if parts["logits"]:
        vocab = shared(run.spec.vocab_size, run.layout.tp, "vocab")
        text = times(counted(run.batch, "sequences"), vocab, "4 bytes")
        formulas.append(Formula(term="logits", text=text, value=parts["logits"]))
    caches = cache_formulas(run.spec, stage.counts, run.seq_len, run.batch, run.kv_dtype, layout=run.layout)
    formulas += caches
    if len(caches) > 1:
        text = plus(*(counted(cache.value) for cache in caches))
        formulas.append(Formula(term="KV cache and states", text=text, value=parts["kv_cache"]))
    return formulas + peak_formulas(memory)


def parameter_formulas(stage: Stage, layout: Layout) -> list[Formula]:
    """Return the formulas of the parameters on one GPU: of one layer if a layout splits it, and of the stage."""
    formulas = []
    if layout.tp > 1 or layout.ep > 1 or layout.expert_tp > 1:
        for layer, _ in _kinds(stage):
            shards: dict[int, int] = {}
            for op in layer:
                shards[op.shards] = shards.get(op.shards, 0) + op.shards * op.parameters
            terms = [
                f"{whole:,} / {counted(count, 'GPUs')}" if count > 1 else counted(whole, "on every GPU")
                for count, whole in sorted(shards.items(), reverse=True)
                if whole
            ]
            formulas.append(
                Formula(
                    term=f"parameters of one layer of {layer[0].layer}",
                    text=plus(*terms),
                    value=sum(op.parameters for op in layer),
                    unit="parameters",
                )
            )
    terms = [_layers(count, layer, sum(op.parameters for op in layer), "parameters") for layer, count in _kinds(stage)]
    outside = sum(op.parameters for chunk in stage.chunks for op in (*chunk.before, *chunk.after))
    text = plus(*terms, counted(outside, "outside the layers") if outside else "")
    total = sum(op.parameters for op in stage.ops)
    return [*formulas, Formula(term="parameters on the GPU", text=text, value=total, unit="parameters")]


def peak_formulas(memory: Memory) -> list[Formula]:
    """Return the formulas of the sum of all parts, and of the memory that a device must have."""
    parts = {"kv_cache": "KV cache", "overhead": "library workspaces"}
    terms = [counted(size, parts.get(name, name)) for name, size in memory.parts_bytes.items() if size]
    workspaces = memory.parts_bytes["overhead"]
    formulas = [
        Formula(term="library workspaces", text=_in_mib(workspaces), value=workspaces),
        Formula(term="peak", text=plus(*terms), value=memory.peak_bytes),
    ]
    free = memory.reserved_bytes - memory.peak_bytes
    needed = [counted(memory.peak_bytes, "peak"), counted(free, "free blocks that fit no other tensor") if free else ""]
    text = plus(*needed, counted(CONTEXT_BYTES, "CUDA context"))
    return [*formulas, Formula(term="needed on the device", text=text, value=memory.needed_bytes)]


def _in_mib(size: int) -> str:
    return f"{size // MIB} × {MIB:,} bytes" if size % MIB == 0 else counted(size, "bytes")


def tensors_text(tensors: Iterable[Tensors]) -> str:
    """Return the formula of the bytes of some tensors. Tensors of the same kind are added up."""
    elements: dict[tuple[str, int], int] = {}
    exact = total = 0
    for each in tensors:
        elements[each.kind, each.bits] = elements.get((each.kind, each.bits), 0) + each.elements
        exact, total = exact + each.elements * each.bits, total + each.bytes
    terms = [
        times(counted(count, kind), counted(bits / 8 if bits % 8 else bits // 8, "bytes"))
        for (kind, bits), count in elements.items()
        if count
    ]
    text = plus(*terms)
    if exact == 8 * total:
        return text
    rest = total - -(-exact // 8)
    return f"ceil({text})" + (f" + {rest:,} from rounding up each tensor" if rest else "")


def _kinds(stage: Stage) -> list[tuple[tuple[Op, ...], int]]:
    """Return the different layers of a stage, and how often each occurs."""
    return _counted(layer for chunk in stage.chunks for layer in chunk.layers)


def _counted(layers: Iterable[tuple[Op, ...]]) -> list[tuple[tuple[Op, ...], int]]:
    kinds: dict[int, tuple[tuple[Op, ...], int]] = {}
    for layer in layers:
        kinds[id(layer)] = layer, kinds.get(id(layer), (layer, 0))[1] + 1
    return list(kinds.values())


def _layers(count: int, layer: Sequence[Op], size: int, noun: str = "bytes") -> str:
    """Return `32 layers of block × 1,024 bytes`, or an empty text if the size is 0."""
    return times(counted(count, f"layers of {layer[0].layer}"), counted(size, noun)) if size and count else ""


def _stored(run: TrainingRun, stage: Stage, from_zero: int, tensors: Callable[[Op], list[Tensors]]) -> str:
    """Return the formula of tensors that ZeRO divides from stage `from_zero` on. Experts have fewer copies."""
    if run.layout.zero < from_zero:
        return tensors_text(each for op in stage.ops for each in tensors(op))
    groups: dict[int, list[Op]] = {}
    for op in stage.ops:
        groups.setdefault(run.copies(op), []).append(op)
    terms = []
    for copies, ops in groups.items():
        sizes = [sum(each.bytes for each in tensors(op)) for op in ops]
        share = sum(run.stored_bytes(op, from_zero, size) for op, size in zip(ops, sizes, strict=True))
        text = tensors_text(each for op in ops for each in tensors(op))
        terms.append(divided(text, sum(sizes), copies, "GPUs", share) if share else "")
    return plus(*terms)


def _weights(run: TrainingRun, stage: Stage, moment: Moment) -> str:
    """Return the formula of the stored weights, and of those that FSDP has gathered at the peak."""
    fsdp = run.layout.zero == 3
    stored = _stored(run, stage, 3, run.stored_weights)
    if run.offloads("weights"):
        stored = ""
    if not fsdp or moment.place == "optimizer":
        return plus(stored)
    gathered = run.gathered_layers(stage)[moment.place]
    outside = run.gathered_outside(stage)[moment.place]
    terms = [
        times(counted(gathered.count(size), "gathered layers"), counted(size, "bytes"))
        for size in dict.fromkeys(gathered)
        if size
    ]
    return plus(stored, *terms, counted(outside, "gathered bytes outside the layers") if outside else "")


def _states(run: TrainingRun, stage: Stage, moment: Moment) -> str:
    """Return the formula of the optimizer states and the master copy, and of the temporaries of the optimizer step."""
    update = counted(moment.update, "temporary bytes of the step") if moment.update else ""
    if run.offloads("weights") or run.offloads("states"):
        return plus(update)
    return plus(_all_states(run, stage), update)


def _all_states(run: TrainingRun, stage: Stage) -> str:
    return _stored(run, stage, 1, lambda op: state_tensors(op, run.optimizer, run.formats, run.recipe))


def _gradients(run: TrainingRun, stage: Stage, chunk: Chunk, moment: Moment) -> str:
    """Return the formula of the gradients at the peak: those of the whole step, and those of the backward pass."""
    split_from = 4 if run.gathers_stage else 2
    bits = bits_of(run.gradient_dtype)
    whole = _stored(run, stage, split_from, lambda op: [Tensors("parameters", op.trained, bits)] if op.trained else [])
    placeholders = run.placeholders(stage.ops)
    if run.offloads("weights"):
        whole = ""
    terms = [whole if run.persistent else "", counted(placeholders, "bytes of placeholders") if placeholders else ""]
    if moment.place == "optimizer":
        return plus(*terms, "" if run.persistent or run.recipe.step == "backward" else whole)
    finished = 0
    done: list[tuple[Op, ...]] = []
    if moment.place not in ("loss", "after"):
        finished = after = walk(run, chunk.after, 0, 0, [], "after")
        terms.append(counted(after, "bytes after the layers") if after else "")
        done = list(chunk.layers[moment.layer + 1 :] if moment.place == "layer" else chunk.layers)
    for layer, count in _counted(done):
        added = walk(run, layer, 0, 0, [], "layer")
        finished += count * added
        terms.append(_layers(count, layer, added))
    running = moment.gradients - finished
    where = "running layer" if moment.place == "layer" else "ops outside the layers"
    return plus(*terms, counted(running, f"bytes of the {where}") if running else "")


def _saved_by_layers(run: TrainingRun, stage: Stage) -> list[Formula]:
    """Return, for each kind of layer, the bytes that its components save, and what recomputation leaves of them."""
    tokens = -(-run.workload.batch * run.workload.query_len // run.layout.cp)
    formulas = []
    for layer, _ in _kinds(stage):
        kind = layer[0].layer
        components: dict[str, list[Op]] = {}
        for op in layer:
            if op.saved_bytes:
                components.setdefault(op.component, []).append(op)
        formulas += [
            Formula(
                term=f"saved by {component}, one layer of {kind}",
                text=_saved(ops, tokens),
                value=sum(op.saved_bytes for op in ops),
            )
            for component, ops in components.items()
        ]
        terms = checkpoint_terms(layer, run.recompute, run.stream(), run.modules)
        if run.recompute == "none" and not run.modules:
            text = plus(*(counted(sum(op.saved_bytes for op in ops), name) for name, ops in components.items()))
        else:
            text = plus(*(counted(size, name) for name, size in terms.items()))
        formulas.append(Formula(term=f"saved by one layer of {kind}", text=text, value=sum(terms.values())))
    return formulas


def _saved(ops: Sequence[Op], tokens: int) -> str:
    """Return `4,096 tokens × (8,192 q_proj + 32,896 core) bytes per token`, or the sum of bytes per op."""
    per_token = all(op.saved_bytes % tokens == 0 for op in ops)
    terms = [counted(op.saved_bytes // (tokens if per_token else 1), _short(op)) for op in ops]
    text = f"({plus(*terms)})" if len(terms) > 1 else terms[0]
    return times(counted(tokens, "tokens"), f"{text} bytes per token") if per_token else f"{text} bytes"


def _short(op: Op) -> str:
    """Return the name of an op inside its layer, without the number of a layer: `attention.core` is `core`."""
    return op.name.rpartition(".")[2]


def _activations(run: TrainingRun, stage: Stage, place: int, moment: Moment) -> str:
    """Return the formula of the activations at the peak, from the first layer to the running op."""
    if moment.place == "optimizer":
        return (
            counted(moment.activations, "bytes of inputs of chunks and their gradients") if moment.activations else "0"
        )
    chunk = stage.chunks[place]
    terms: list[str] = []
    saved = 0
    if moment.place != "before":
        below = chunk.layers[: moment.layer] if moment.place == "layer" else chunk.layers
        below = below[-1:] if run.offloads("activations") else below
        for layer, count in _counted(below):
            size = run.checkpoint(layer)
            saved += count * size
            terms.append(_layers(count, layer, size))
        first = sum(op.saved_bytes for op in chunk.before)
        saved += first
        terms.append(counted(first, "bytes before the layers") if first else "")
    temporary = 0 if moment.place == "loss" else moment.temporary
    own = moment.activations - saved - temporary
    where = {"layer": "running layer", "before": "ops before the layers"}.get(moment.place, "ops after the layers")
    terms.append(counted(own, f"bytes of the {where}") if own else "")
    terms.append(counted(temporary, "temporary bytes") if temporary else "")
    return plus(*filter(None, terms), _others(run, stage, place))


def _others(run: TrainingRun, stage: Stage, place: int) -> str:
    """Return the formula of the activations of the other micro-batches, or chunks, in flight."""
    waiting = run.waiting_heads(stage, stage.chunks[place])
    kept = counted(waiting, "bytes for the deferred gradients of the head") if waiting else ""
    if run.offloads("activations"):
        return kept
    saved = [run.saved(chunk) for chunk in stage.chunks]
    noun = "other micro-batches" if len(saved) == 1 else "other chunks"
    terms = zip(run.in_flight(stage, saved)[place], saved, strict=True)
    found = [times(counted(count, noun), counted(size)) for count, size in terms if count and size]
    return plus(*found, kept) if found or kept else ""


def _logits(run: TrainingRun, chunk: Chunk, moment: Moment) -> str:
    """Return the formula of the logits at the loss: bytes per logit that are saved, and that are temporary.

    A loss in chunks has parts that are not a whole number of bytes per logit.
    """
    tokens = -(-run.workload.batch * run.workload.query_len // run.layout.cp)
    logits = tokens * -(-run.spec.vocab_size // run.layout.tp)
    temporary = moment.temporary if moment.place == "loss" else 0
    saved = moment.logits - temporary
    if saved % logits or temporary % logits:
        return plus(counted(saved, "saved bytes"), counted(temporary, "temporary bytes"))
    text = plus(counted(saved // logits, "saved"), counted(temporary // logits, "temporary"))
    vocab = shared(run.spec.vocab_size, run.layout.tp, "vocab")
    return times(counted(tokens, "tokens"), vocab, f"({text}) bytes per logit")
