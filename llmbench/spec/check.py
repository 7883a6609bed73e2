"""Checks of a whole spec: number ranges, the fields of each part, and contradictions between parts.

`Part.faults` checks the fields of one part. Examples of contradictions between parts are a pattern with an undefined
layer name, or a position encoding that a mixer does not support.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import chain
from typing import TYPE_CHECKING, assert_never, get_args

from llmbench.errors import SpecError
from llmbench.spec.base import LARGEST, Fault, Part
from llmbench.spec.faults import default_hint
from llmbench.spec.mixer import AttentionKind, Indexer, SingleMixer, branches
from llmbench.spec.position import (
    Alibi,
    LearnedPositions,
    NoPositions,
    PositionKind,
    Positions,
    RelativeBias,
    Rope,
    RopeScaling,
    SinusoidalPositions,
)

if TYPE_CHECKING:
    from llmbench.spec.model import Layer, ModelSpec

_Placed = tuple[str, SingleMixer]
"""A mixer and its path in the spec, as (path, mixer)."""


MOST_KINDS = 1_000
"""The largest number of kinds of layers. `memory` and `fit` compute each of them for many layouts."""


def check(spec: ModelSpec) -> None:
    """Raise SpecError for the first faulty field. The message names the field and its value."""
    for fault in _faults(spec):
        raise SpecError(f"{fault.field}: {fault.what}", hint=fault.hint)


def _faults(spec: ModelSpec) -> Iterator[Fault]:
    """Yield the faults of a spec, each with the full path of its field.

    The order of the checks matters. A check may assume that all earlier checks found no fault.
    """
    yield from _layer_faults(spec.layers, spec.order, "")
    if spec.encoder is not None:
        yield from _layer_faults(spec.encoder.layers, spec.encoder.order, "encoder.")
    for at, part in _parts(spec, ""):
        for fault in chain(_number_faults(part), part.faults()):
            yield fault._replace(field=f"{at}{fault.field}")
    for name, layer in spec.layers.items():
        if layer.cross_attention is not None and spec.encoder is None:
            yield Fault(f"layers.{name}.cross_attention", "needs an encoder, but the model has none")
        if spec.embedding.per_layer is not None and layer.ffn is None:
            what = "is absent, but per-layer embeddings (embedding.per_layer) use the activation of the feed-forward"
            yield Fault(f"layers.{name}.ffn", what)
    yield from _stack_faults(spec.layers, spec.order, spec.positions, spec.max_position_embeddings, "")
    if spec.encoder is not None:
        stack, at = spec.encoder, "encoder."
        positions = NoPositions() if stack.positions is None else stack.positions
        yield from _stack_faults(stack.layers, stack.order, positions, spec.max_position_embeddings, at)
        for name, layer in stack.layers.items():
            if layer.cross_attention is not None:
                yield Fault(
                    f"encoder.layers.{name}.cross_attention",
                    "must be absent: only a decoder layer can attend to the output of an encoder",
                )
    width = spec.embedding.size or spec.hidden_size
    if spec.tie_word_embeddings and spec.head.size not in (None, width):
        what = f"{spec.head.size} differs from {width}, the width of the token table, which is also the head's matrix"
        yield Fault("head.size", what, "set tie_word_embeddings = false, or leave out head.size")
    mtp = spec.next_token_prediction
    if mtp is not None and mtp.layer not in spec.layers:
        yield Fault("next_token_prediction.layer", f"`layers` has no entry `{mtp.layer}`")


def _parts(part: Part, at: str) -> Iterator[tuple[str, Part]]:
    """Yield a part and all parts inside it, each with the path prefix of its fields."""
    yield at, part
    for field in part.__struct_fields__:
        value = getattr(part, field)
        if isinstance(value, Part):
            yield from _parts(value, f"{at}{field}.")
        elif isinstance(value, (dict, tuple)):
            for key, item in value.items() if isinstance(value, dict) else enumerate(value):
                if isinstance(item, Part):
                    yield from _parts(item, f"{at}{field}.{key}.")


def _number_faults(part: Part) -> Iterator[Fault]:
    for field in part.__struct_fields__:
        value = getattr(part, field)
        if not isinstance(value, (float, tuple)):
            continue
        for number in value if isinstance(value, tuple) else (value,):
            if isinstance(number, float) and number != 0 and not 1 / LARGEST <= abs(number) <= LARGEST:
                what = f"{number} is out of range: its absolute value must be 0, or from {1 / LARGEST:g} to {LARGEST:g}"
                yield Fault(field, what, default_hint(part, field))


def _layer_faults(layers: dict[str, Layer], order: Sequence[str], at: str) -> Iterator[Fault]:
    """Yield contradictions between the kinds of layers and the pattern that gives the order of the layers."""
    if len(layers) > MOST_KINDS:
        yield Fault(f"{at}layers", f"has {len(layers):,} kinds of layers, more than {MOST_KINDS:,}")
    if not order:
        yield Fault(f"{at}pattern", "has no layers", 'write for example pattern = "32*block"')
    for name in order:
        if name not in layers:
            names = ", ".join(f"`{key}`" for key in layers)
            hint = f"choose from {names}, the entries of `{at}layers`" if names else f"`{at}layers` has no entries"
            spec_file = "write a spec file (see `llmbench specs show`)"
            hint += f"; to add a kind of layer, {spec_file} with `[{at}layers.{name}]`"
            if layers and not at:
                first = next(iter(layers))
                hint += f", or copy one: --set layers.{name}={first} --set layers.{name}.mixer.sliding_window=1024"
            yield Fault(f"{at}pattern", f"`{at}layers` has no entry `{name}`", hint)
    used = set(order)
    tags = Counter(layer.shared_weights for layer in layers.values())
    for name, layer in layers.items():
        if name not in used:
            hint = f"use `{name}` in the pattern, or remove the kind of layer"
            yield Fault(f"{at}layers.{name}", f"is not used in `{at}pattern`", hint)
        tag = layer.shared_weights
        if tag is not None and tags[tag] > 1:
            what = f"another kind of layer also uses the name `{tag}`"
            yield Fault(f"{at}layers.{name}.shared_weights", what)


def _stack_faults(
    layers: dict[str, Layer], order: Sequence[str], positions: Positions, trained_len: int | None, at: str
) -> Iterator[Fault]:
    """Yield contradictions between mixers and position encodings of a stack, and between layers that share something.

    The layers of a stack can share a table of relative biases, or the keys that an indexer selected.

    trained_len: longest sequence of the training, in tokens. It is used if a RoPE scaling does not state its own
        length.
    """
    mixers = {name: _mixers(f"{at}layers.{name}.mixer", layer) for name, layer in layers.items()}
    everything = list(chain.from_iterable(mixers.values()))
    for where, mixer in everything:
        if isinstance(mixer, AttentionKind):
            own = mixer.positions
            place, used = (f"{at}positions", positions) if own is None else (f"{where}.positions", own)
            yield from _position_faults(where, mixer, place, used, trained_len)
    recurrent = everything and not any(isinstance(mixer, AttentionKind) for _, mixer in everything)
    if recurrent and _acts_in_mixers(positions):
        what = f"`{positions.kind}` needs attention, but all mixers are recurrent (such as {everything[0][1].label})"
        yield Fault(f"{at}positions", what, _choices([]))
    in_order = [mixer for name in order for mixer in mixers[name]]
    yield from _shared_table_faults(in_order, positions, first=mixers[order[0]])
    yield from _shared_choice_faults(in_order)


def _mixers(where: str, layer: Layer) -> list[_Placed]:
    """Return the mixers of a layer with their paths. A `Parallel` mixer is replaced by its branches."""
    singles = branches(layer.mixer)
    return [(where if mixer is layer.mixer else f"{where}.branches.{i}", mixer) for i, mixer in enumerate(singles)]


def _position_faults(
    where: str, mixer: AttentionKind, place: str, positions: Positions, trained_len: int | None
) -> Iterator[Fault]:
    """Yield contradictions between a mixer and its position encoding."""
    if _acts_in_mixers(positions) and type(positions) not in mixer.position_kinds:
        acts = f"`{positions.kind}` acts on {positions.acts_on}"
        what = f"{acts}, but {where} ({mixer.label}) does not support this encoding"
        yield Fault(place, what, _choices(mixer.position_kinds))
        return
    match positions:
        case Rope():
            yield from _rotation_faults(where, mixer, place, positions, trained_len)
        case RelativeBias():
            yield from _bucket_faults(where, positions, causal=mixer.causal)
        case Alibi() | LearnedPositions() | SinusoidalPositions() | NoPositions():
            pass
        case _:
            assert_never(positions)


def _acts_in_mixers(positions: Positions) -> bool:
    """Return whether the mixers apply this position encoding. Other position encodings are added to the embedding."""
    return positions.acts_on in ("queries and keys", "scores")


def _choices(supported: Sequence[type[PositionKind]]) -> str:
    """Return a hint that lists the position encodings that a mixer supports."""
    kinds = [*supported, *(kind for kind in get_args(Positions) if kind.acts_on in ("embedding", "nothing"))]
    tags = [f"`{kind.__struct_config__.tag}`" for kind in kinds]
    return f"choose {', '.join(tags[:-1])} or {tags[-1]}"


def _rotation_faults(
    where: str, mixer: AttentionKind, place: str, rope: Rope, trained_len: int | None
) -> Iterator[Fault]:
    """Yield contradictions between the head width of a mixer and the number of dimensions that RoPE rotates."""
    rotated = mixer.rotated_heads
    if rotated is None or not rotated.width:
        return
    if rope.table_rows is not None and (place != "positions" or rope.scaling is not None):
        what = f"{rope.table_rows} needs unscaled positions of the whole model, without an encoder"
        yield Fault(f"{place}.table_rows", what, "leave out table_rows")
    field, width = rotated.field, rotated.width
    turned = width if rope.rotary_dim is None else rope.rotary_dim
    if turned > width:
        yield Fault(f"{place}.rotary_dim", f"{turned} is more than {where}.{field} {width}", f"choose at most {width}")
    elif turned % 2:
        hint = f"choose an even number, or set {place}.rotary_dim to an even number"
        yield Fault(f"{where}.{field}", f"{width} is odd, but {place} rotates dimensions in pairs", hint)
    indexer = mixer.indexer
    if indexer is not None and not indexer.shared and indexer.head_dim < turned:
        what = f"{indexer.head_dim} is less than the {turned} dimensions that {place} rotates"
        yield Fault(f"{where}.indexer.head_dim", what)
    if rope.scaling is not None:
        yield from _scaling_faults(f"{place}.scaling", rope.scaling, turned, trained_len)


def _scaling_faults(at: str, scaling: RopeScaling, turned: int, trained_len: int | None) -> Iterator[Fault]:
    original = scaling.original_max_position_embeddings or trained_len
    if scaling.kind in ("dynamic", "yarn", "llama3", "longrope") and original is None:
        hint = "set max_position_embeddings or the scaling's original_max_position_embeddings"
        yield Fault(at, f"{scaling.kind} needs the length of the longest training sequence", hint)
    if scaling.kind == "dynamic" and turned == 2:
        yield Fault(
            at,
            "dynamic has no effect: it never changes the first pair of dimensions, and RoPE rotates only this pair",
            "rotate more dimensions",
        )
    if scaling.kind != "longrope":
        return
    if original == 1:
        yield Fault(
            f"{at}.original_max_position_embeddings",
            "1 is too short: longrope divides by the logarithm of the length, and the logarithm of 1 is 0",
        )
    for field in ("short_factor", "long_factor"):
        count = len(getattr(scaling, field))
        if count != turned // 2:
            yield Fault(f"{at}.{field}", f"needs {turned // 2} numbers, one per pair of dimensions, not {count}")


def _bucket_faults(where: str, bias: RelativeBias, *, causal: bool) -> Iterator[Fault]:
    """Yield a fault if a relative bias has no buckets for far distances.

    In each direction, each bucket of the first half stands for one distance. The second half of the buckets stands for
    larger distances, up to max_distance.
    """
    exact = bias.num_buckets // (2 if causal else 4)
    if exact < 1 or bias.max_distance <= exact:
        yield Fault(
            where,
            f"a relative bias of num_buckets {bias.num_buckets} and max_distance {bias.max_distance}"
            f" has no buckets for far distances: it needs at least {2 if causal else 4} buckets and a max_distance"
            f" above {exact}",
        )


def _shared_table_faults(
    in_order: Sequence[_Placed], positions: Positions, *, first: Sequence[_Placed]
) -> Iterator[Fault]:
    """Yield faults of layers that share one table of relative biases.

    The first layer of the stack stores the table. The table has one column per attention head.
    """
    users = []
    for at, mixer in in_order:
        if isinstance(mixer, AttentionKind):
            table = _shared_table(positions if mixer.positions is None else mixer.positions)
            if table is not None:
                users.append((at, mixer, table))
    if not users:
        return
    where, owner, table = users[0]
    hint = "per_layer = true gives each layer its own table"
    if where not in (at for at, _ in first):
        yield Fault(where, "needs the table of relative biases of the first layer, but that layer has none", hint)
    for at, mixer, used in users:
        if mixer.num_attention_heads != owner.num_attention_heads:
            what = f"{mixer.num_attention_heads} differs from the {owner.num_attention_heads} heads of {where}"
            yield Fault(f"{at}.num_attention_heads", f"{what}, but both layers use one table of relative biases", hint)
        if used != table:
            yield Fault(at, f"its relative bias differs from that of {where}, but both layers use one table", hint)


def _shared_table(positions: Positions) -> RelativeBias | None:
    """Return the position encoding if all layers of a stack share one table of its biases, else None."""
    match positions:
        case RelativeBias():
            return None if positions.per_layer else positions
        case Rope() | Alibi() | LearnedPositions() | SinusoidalPositions() | NoPositions():
            return None
        case _:
            assert_never(positions)


def _shared_choice_faults(in_order: Sequence[_Placed]) -> Iterator[Fault]:
    """Yield faults of layers that reuse the keys that the indexer of an earlier layer selected.

    Such an earlier layer must exist, must select the same number of keys, and must have the same window.
    """
    chooser: tuple[str, SingleMixer, Indexer] | None = None
    for at, mixer in in_order:
        indexer = mixer.indexer
        if indexer is None:
            continue
        if not indexer.shared:
            chooser = at, mixer, indexer
            continue
        if chooser is None:
            yield Fault(f"{at}.indexer.shared", "no earlier layer has an indexer of its own")
            return
        where, owner, chosen = chooser
        if indexer.top_k != chosen.top_k:
            what = f"{indexer.top_k} differs from top_k {chosen.top_k} of {where}, whose indexer selects the keys"
            yield Fault(f"{at}.indexer.top_k", what)
        if mixer.span != owner.span:
            what = f"{mixer.span} differs from the window {owner.span} of {where}, whose indexer selects the keys"
            yield Fault(f"{at}.sliding_window", what)
