"""Holding a spec against itself: every number, the own faults of every part (`Part.faults`), and what parts cannot be
beside each other: layers and their order, positions and the heads they turn."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import chain
from typing import TYPE_CHECKING

from llmbench.errors import SpecError
from llmbench.spec.base import LARGEST, Fault, Part
from llmbench.spec.faults import default_hint
from llmbench.spec.mixer import Attention, CompressedAttention, Indexer, LatentAttention, SingleMixer, branches
from llmbench.spec.position import Alibi, Positions, RelativeBias, Rope, RopeScaling

if TYPE_CHECKING:
    from llmbench.spec.model import Layer, ModelSpec

_Placed = tuple[str, SingleMixer]
"""A mixer and its path."""


def check(spec: ModelSpec) -> None:
    """Raise SpecError for the first field that cannot be as it is; the message names it and its value."""
    for fault in _faults(spec):
        raise SpecError(f"{fault.field}: {fault.what}", hint=fault.hint)


def _faults(spec: ModelSpec) -> Iterator[Fault]:
    """What is wrong with a spec, each field with its whole path; what comes later takes for granted that none came
    before."""
    yield from _layer_faults(spec.layers, spec.order, "")
    if spec.encoder is not None:
        yield from _layer_faults(spec.encoder.layers, spec.encoder.order, "encoder.")
    for at, part in _parts(spec, ""):
        for fault in chain(_number_faults(part), part.faults()):
            yield fault._replace(field=f"{at}{fault.field}")
    for name, layer in spec.layers.items():
        if layer.cross_attention is not None and spec.encoder is None:
            yield Fault(f"layers.{name}.cross_attention", "the model has no encoder")
    yield from _stack_faults(spec.layers, spec.order, spec.positions, spec.max_position_embeddings, "")
    if spec.encoder is not None:
        stack, at = spec.encoder, "encoder."
        yield from _stack_faults(stack.layers, stack.order, stack.positions, spec.max_position_embeddings, at)
        for name, layer in stack.layers.items():
            if layer.cross_attention is not None:
                yield Fault(f"encoder.layers.{name}.cross_attention", "an encoder has no other to attend to")
    mtp = spec.next_token_prediction
    if mtp is not None and mtp.layer not in spec.layers:
        yield Fault("next_token_prediction.layer", f"no layer kind `{mtp.layer}` in layers")


def _parts(part: Part, at: str) -> Iterator[tuple[str, Part]]:
    """A part and every part inside it, each with the path in front of its fields."""
    yield at, part
    for field in part.__struct_fields__:
        value = getattr(part, field)
        inside = value if isinstance(value, dict) else dict(enumerate(value)) if isinstance(value, tuple) else None
        for key, held in ({field: value} if inside is None else inside).items():
            if isinstance(held, Part):
                yield from _parts(held, f"{at}{key}." if inside is None else f"{at}{field}.{key}.")


def _number_faults(part: Part) -> Iterator[Fault]:
    for field in part.__struct_fields__:
        value = getattr(part, field)
        for number in value if isinstance(value, tuple) else (value,):
            if isinstance(number, float) and number != 0 and not 1 / LARGEST <= abs(number) <= LARGEST:
                yield Fault(field, f"{number} is not a number of sensible size", default_hint(part, field))


def _layer_faults(layers: dict[str, Layer], order: Sequence[str], at: str) -> Iterator[Fault]:
    """What is wrong between the kinds of layers and the pattern that orders them."""
    if not order:
        yield Fault(f"{at}pattern", "no layers")
    for name in order:
        if name not in layers:
            yield Fault(f"{at}pattern", f"no layer kind `{name}`", f"{at}layers has: {', '.join(layers) or 'none'}")
    used = set(order)
    for name, layer in layers.items():
        if name not in used:
            yield Fault(f"{at}layers.{name}", f"never used in {at}pattern")
        tag = layer.shared_weights
        if tag is not None and any(tag == other.shared_weights for key, other in layers.items() if key != name):
            what = f"`{tag}` names the weights of another kind of layer too"
            yield Fault(f"{at}layers.{name}.shared_weights", what)


def _stack_faults(
    layers: dict[str, Layer], order: Sequence[str], positions: Positions | None, trained: int | None, at: str
) -> Iterator[Fault]:
    """What is wrong between mixers and their positions, and between layers that hand something on. `trained`: the
    length that a scaling without its own starts from."""
    mixers = {name: _mixers(f"{at}layers.{name}.mixer", layer) for name, layer in layers.items()}
    for each in mixers.values():
        for where, mixer in each:
            if isinstance(mixer, (Attention, LatentAttention, CompressedAttention)):
                own = mixer.positions is not None
                place = f"{where}.positions" if own else f"{at}positions"
                used = mixer.positions if own else positions
                if isinstance(used, Rope):
                    yield from _rotation_faults(where, mixer, place, used, trained)
                elif isinstance(used, (Alibi, RelativeBias)) and not isinstance(mixer, Attention):
                    yield Fault(place, f"{type(used).__name__} biases scores, and {where} takes rotations alone")
                elif isinstance(used, RelativeBias) and isinstance(mixer, Attention):
                    yield from _bucket_faults(where, used, causal=mixer.causal)
    in_order = [mixer for name in order for mixer in mixers[name]]
    yield from _shared_table_faults(in_order, positions, first=mixers[order[0]])
    yield from _shared_choice_faults(in_order)


def _mixers(where: str, layer: Layer) -> list[_Placed]:
    """The single mixers of a layer, with their paths."""
    found = branches(layer.mixer)
    return [(where if mixer is layer.mixer else f"{where}.branches.{i}", mixer) for i, mixer in enumerate(found)]


def _rotation_faults(
    where: str, mixer: Attention | LatentAttention | CompressedAttention, place: str, rope: Rope, trained: int | None
) -> Iterator[Fault]:
    """What is wrong between heads and the rotation of their first `rotary_dim` dims, or of all of them."""
    field = "qk_rope_head_dim" if isinstance(mixer, LatentAttention) else "head_dim"
    width = getattr(mixer, field)
    turned = width if rope.rotary_dim is None else rope.rotary_dim
    if not width:
        return
    if turned > width:
        yield Fault(f"{place}.rotary_dim", f"{turned} is more than {where}.{field} {width}", "turn that many or fewer")
    elif turned % 2:
        hint = f"choose an even one, or let {place}.rotary_dim turn an even part"
        yield Fault(f"{where}.{field}", f"{width} is odd, but {place} turns dims in pairs", hint)
    indexer = None if isinstance(mixer, Attention) else mixer.indexer
    if indexer is not None and not indexer.shared and indexer.head_dim < turned:
        yield Fault(
            f"{where}.indexer.head_dim", f"{indexer.head_dim} is less than the {turned} dims that {place} turns"
        )
    if rope.scaling is not None:
        yield from _scaling_faults(f"{place}.scaling", rope.scaling, turned, trained)


def _scaling_faults(at: str, scaling: RopeScaling, turned: int, trained: int | None) -> Iterator[Fault]:
    original = scaling.original_max_position_embeddings or trained
    if scaling.kind in ("dynamic", "yarn", "llama3", "longrope") and original is None:
        hint = "set max_position_embeddings or the scaling's original_max_position_embeddings"
        yield Fault(at, f"{scaling.kind} starts from the length a model was trained on, which is not said", hint)
    if scaling.kind == "dynamic" and turned == 2:
        yield Fault(at, "dynamic stretches all pairs but the first, and there is one", "turn more than 2 dims")
    if scaling.kind != "longrope":
        return
    if original == 1:
        yield Fault(f"{at}.original_max_position_embeddings", "1 leaves nothing to go beyond, by its logarithm")
    for field in ("short_factor", "long_factor"):
        count = len(getattr(scaling, field))
        if count != turned // 2:
            yield Fault(f"{at}.{field}", f"needs {turned // 2} numbers, one a pair of dims, not {count}")


def _bucket_faults(where: str, bias: RelativeBias, *, causal: bool) -> Iterator[Fault]:
    """Half of a direction's buckets are for one distance each; the others need distances beyond them."""
    exact = bias.num_buckets // (2 if causal else 4)
    if exact < 1 or bias.max_distance <= exact:
        yield Fault(
            where,
            f"a relative bias of num_buckets {bias.num_buckets} and max_distance {bias.max_distance}"
            f" has no buckets for far distances: that takes at least {2 if causal else 4} buckets, and a max_distance"
            f" above {exact}",
        )


def _shared_table_faults(
    in_order: Sequence[_Placed], positions: Positions | None, *, first: Sequence[_Placed]
) -> Iterator[Fault]:
    """One table of relative biases serves a stack: its first layer has it, and it has a column a head."""
    users = []
    for at, mixer in in_order:
        if isinstance(mixer, Attention):
            used = positions if mixer.positions is None else mixer.positions
            if isinstance(used, RelativeBias) and not used.per_layer:
                users.append((at, mixer, used))
    if not users:
        return
    where, owner, table = users[0]
    hint = "per_layer = true gives each layer its own"
    if where not in (at for at, _ in first):
        yield Fault(where, "shares the relative bias of the first layer, which has none", hint)
    for at, mixer, used in users:
        if mixer.num_attention_heads != owner.num_attention_heads:
            what = f"{mixer.num_attention_heads} differs from {owner.num_attention_heads} of {where}"
            yield Fault(f"{at}.num_attention_heads", f"{what}, whose relative bias it shares", hint)
        if used != table:
            yield Fault(at, f"its relative bias differs from that of {where}, which it shares", hint)


def _shared_choice_faults(in_order: Sequence[_Placed]) -> Iterator[Fault]:
    """An indexer that takes the choice before it needs one, of as many keys and within the same window."""
    chooser: tuple[str, LatentAttention, Indexer] | None = None
    for at, mixer in in_order:
        indexer = mixer.indexer if isinstance(mixer, LatentAttention) else None
        if not isinstance(mixer, LatentAttention) or indexer is None:
            continue
        if not indexer.shared:
            chooser = at, mixer, indexer
            continue
        if chooser is None:
            yield Fault(f"{at}.indexer.shared", "no layer before it has an indexer of its own")
            return
        where, owner, chosen = chooser
        if indexer.top_k != chosen.top_k:
            yield Fault(f"{at}.indexer.top_k", f"{indexer.top_k} differs from {chosen.top_k} of {where}, which chooses")
        if mixer.sliding_window != owner.sliding_window:
            what = f"{mixer.sliding_window} differs from {owner.sliding_window} of {where}, which chooses the keys"
            yield Fault(f"{at}.sliding_window", what)
