"""The fields of a spec that a key of `--set` means."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

from llmbench.errors import SpecError, suggestion
from llmbench.spec.base import Part
from llmbench.spec.model import ModelSpec
from llmbench.spec.schema import Path, Place, fields_of, tag_of

HUGGING_FACE_NAMES = {
    "rope_theta": "positions.theta",
    "rms_norm_eps": "norm.eps",
    "layer_norm_eps": "norm.eps",
    "layer_norm_epsilon": "norm.eps",
    "hidden_act": "activation",
    "hidden_activation": "activation",
    "activation_function": "activation",
    "num_local_experts": "num_experts",
    "n_routed_experts": "num_experts",
    "moe_intermediate_size": "moe.intermediate_size",
    "shared_expert_intermediate_size": "shared.intermediate_size",
    "index_topk": "indexer.top_k",
    "index_n_heads": "indexer.num_heads",
    "index_head_dim": "indexer.head_dim",
    "attn_logit_softcapping": "logit_soft_cap",
    "final_logit_softcapping": "head.soft_cap",
    "num_nextn_predict_layers": "next_token_prediction.count",
    "n_positions": "positions.num_positions",
    "n_embd": "hidden_size",
    "n_layer": "num_hidden_layers",
    "n_head": "num_attention_heads",
    "n_inner": "intermediate_size",
    "d_model": "hidden_size",
    "d_ff": "intermediate_size",
    "ffn_dim": "intermediate_size",
    "num_layers": "num_hidden_layers",
}
"""Keys of Hugging Face configs that mean one field, and the end of the path of that field.

In `moe.intermediate_size`, `moe` stands for the kind of the feed-forward.
"""

_MOST_PATHS = 8
"""The largest number of paths that a message lists."""

_ABSENT = object()


class Target(NamedTuple):
    """A field that a key means.

    - path: the full path of the field.
    - node: the dict that contains the field.
    - place: the part that the dict describes. None: the dict is a table of parts, such as `layers`.
    """

    path: Path
    node: dict[str, Any]
    place: Place | None

    @property
    def field(self) -> str:
        """The name of the field."""
        return self.path[-1]

    @property
    def choices(self) -> tuple[type[Part], ...]:
        """The classes that a part in this field can have. Empty: the field contains no part."""
        if self.place is None or self.place.part is None or self.field == "kind":
            return ()
        field = fields_of(self.place.part)[self.field]
        return field.choices if field.shape == "part" else ()


def spec_name(key: str) -> str:
    """Return the name that a spec uses for a key of a Hugging Face config. Other keys are returned unchanged."""
    return HUGGING_FACE_NAMES.get(key, key)


def value_for(target: Target, value: Any) -> Any:
    """Return the value to assign. `none` is a value of some fields, such as `placement`; it does not remove them."""
    if value is not None or target.place is None or target.place.part is None:
        return value
    from llmbench.spec.diagnosis import words_of

    if target.field == "kind":
        return "none"
    field = fields_of(target.place.part)[target.field]
    words = words_of(field.annotation) + [tag_of(choice) or "" for choice in field.choices if field.default is not None]
    return "none" if "none" in words else None


def targets(tree: dict[str, Any], key: str, model: str, every: Sequence[Place]) -> list[Target]:
    """Return the fields that a key means.

    model: the name of the model, for messages. every: all parts of the tree.

    Raises SpecError if there is no such field, or if the key is ambiguous.
    """
    path = tuple(spec_name(key).split("."))
    if len(path) == 1 and key in fields_of(ModelSpec):
        return [Target(path, tree, Place((), tree, ModelSpec, (ModelSpec,)))]
    if path[0] == "*" or path[0] in fields_of(ModelSpec):
        return _by_full_path(tree, every, path, key)
    matches = list(_by_end(every, path))
    if not matches:
        raise _inside_absent_part(key, path, every) or _unknown(key, path[-1], every, model)
    if len(matches) > 1 and "*" not in path and not _alike(matches):
        raise _ambiguous(tree, key, every, matches, model)
    return matches


def _by_end(every: Sequence[Place], path: Path) -> Iterator[Target]:
    """Yield the fields whose path ends in `path`. The kind of a part can stand for its name."""
    field = path[-1]
    for place in every:
        if place.part is None or not (field in fields_of(place.part) or (field == "kind" and tag_of(place.part))):
            continue
        steps = [{"*", step} for step in place.path]
        if place.part is not ModelSpec and (tag := tag_of(place.part)) is not None:
            steps[-1].add(tag)
        wanted = path[:-1]
        if len(wanted) <= len(steps) and all(
            step in names for step, names in zip(reversed(wanted), reversed(steps), strict=False)
        ):
            yield Target((*place.path, field), place.node, place)


def _alike(matches: Sequence[Target]) -> bool:
    """Return whether all targets are the same field of the same kind of part, and have the same value."""
    first = matches[0]
    value = first.node.get(first.field, _ABSENT)
    return all(
        match.place is not None
        and first.place is not None
        and match.place.part is first.place.part
        and match.node.get(match.field, _ABSENT) == value
        for match in matches
    )


def _by_full_path(tree: dict[str, Any], every: Sequence[Place], path: Path, key: str) -> list[Target]:
    """Return the fields that match a path from the top of the spec. `*` matches every name at its position."""
    nodes: list[tuple[Path, Any]] = [((), tree)]
    for step, part in enumerate(path[:-1]):
        children = [child for at, node in nodes for child in _children(at, node, part)]
        if not any(child is not None for _, child in children):
            prefix = ".".join(path[: step + 1])
            raise _inside_absent_part(key, path, every) or _no_part(key, prefix, part, nodes)
        nodes = [(at, child) for at, child in children if child is not None]
    of_node = {id(place.node): place for place in every}
    found = [Target((*at, path[-1]), node, of_node.get(id(node))) for at, node in nodes if isinstance(node, dict)]
    if not found:
        raise SpecError(f"--set {key}: `{'.'.join(path[:-1])}` has no fields")
    known = [target for target in found if _has(target)]
    if not known:
        from llmbench.spec.diagnosis import message, unknown_field

        place = found[0].place
        assert place is not None
        assert place.part is not None
        fault = unknown_field(".".join(place.path), place.part, path[-1])
        raise SpecError(f"--set {key}: {message(fault)}", hint=fault.hint)
    return known


def _has(target: Target) -> bool:
    place = target.place
    if place is None:
        return True
    if place.part is None:
        return target.field == "kind"
    return target.field in fields_of(place.part) or (target.field == "kind" and tag_of(place.part) is not None)


def _children(at: Path, node: Any, part: str) -> list[tuple[Path, Any]]:
    if isinstance(node, dict):
        return [((*at, str(name)), child) for name, child in node.items() if part in ("*", name)]
    if isinstance(node, list):
        return [((*at, str(number)), child) for number, child in enumerate(node) if part in ("*", str(number))]
    return []


def _inside_absent_part(key: str, path: Path, every: Sequence[Place]) -> SpecError | None:
    """Return the error for a field of a part that the model could have and lacks. None: the key names no such part."""
    for end in range(len(path) - 1, 0, -1):
        for target in _by_end(every, path[:end]):
            if target.choices and target.node.get(target.field) is None:
                return _absent(key, ".".join(target.path), target.choices)
    return None


def _absent(key: str, path: str, choices: Sequence[type[Part]]) -> SpecError:
    """Return the error for a field of a part that is none. The hint names the fields that the part needs."""
    fields = ["kind"] if len(choices) > 1 else [name for name, field in fields_of(choices[0]).items() if field.required]
    needed = ", ".join(f"{name} = …" for name in fields)
    part = f"{{ {needed} }}" if needed else "{}"
    return SpecError(f"--set {key}: `{path}` is none in this spec", hint=f"add the part: --set '{path}={part}'")


def _no_part(key: str, prefix: str, part: str, nodes: Sequence[tuple[Path, Any]]) -> SpecError:
    names = sorted({str(name) for _, node in nodes if isinstance(node, dict) for name in node})
    near = suggestion(part, names)
    hint = f"did you mean `{near}`?" if near else f"choose from {', '.join(names)}" if names else None
    if prefix.startswith("layers.") and names and not near:
        hint = f"{hint}; --set {prefix}={names[0]} first adds a copy of `{names[0]}`"
    return SpecError(f"--set {key}: this spec has no `{prefix}`", hint=hint)


def _ambiguous(
    tree: dict[str, Any], key: str, every: Sequence[Place], matches: Sequence[Target], model: str
) -> SpecError:
    from llmbench.spec.diagnosis import shown

    paths = [f"{'.'.join(match.path)} = {shown(match.node.get(match.field))}" for match in matches[:_MOST_PATHS]]
    more = f" and {len(matches) - _MOST_PATHS} more" if len(matches) > _MOST_PATHS else ""
    hint = "use the full path of one field"
    star = tuple(
        names.pop() if len(names) == 1 else "*" for names in map(set, zip(*(m.path for m in matches), strict=False))
    )
    paths_of_star = set()
    if len({len(match.path) for match in matches}) == 1 and star.count("*") == 1 and star[0] != "*":
        paths_of_star = {target.path for target in _by_full_path(tree, every, star, key)}
    if paths_of_star == {match.path for match in matches}:
        hint += f", or {'.'.join(star)} for all of them"
    return SpecError(
        f"--set {key}: {model} has {len(matches)} such fields, which differ: {', '.join(paths)}{more}", hint=hint
    )


def _unknown(key: str, field: str, every: Sequence[Place], model: str) -> SpecError:
    """Return the error for a key that no field of the model has. The hint names a similar field with its full path."""
    from llmbench.spec.diagnosis import homes_of

    known: dict[str, list[str]] = {"num_hidden_layers": []}
    for place in every:
        for name in fields_of(place.part) if place.part is not None else ():
            known.setdefault(name, []).append(".".join((*place.path, name)))
    other = OTHER_NAMES.get(field)
    homes = [] if other in known else homes_of(other or field)
    if homes and field not in known:
        hint = f"`{other or field}` is a field of {' or '.join(homes[:3])}"
        if "(kind" in homes[0]:
            hint += f". Change the kind first, for example --set {homes[0].split(' (')[0].rpartition('.')[2]}.kind="
            hint += homes[0].split("(kind ")[1].rstrip(")").split(",")[0]
        return SpecError(f"--set {key}: {model} has no such field", hint=hint)
    near = meant_field(field, known) or (field if field in known else suggestion(field, known))
    if near is None:
        return SpecError(
            f"--set {key}: {model} has no such field", hint=f"`llmbench specs show {model}` shows its fields"
        )
    paths = [path for path in known[near] if path != near][:_MOST_PATHS]
    full = f" Its full path is {' or '.join(paths)}" if paths else ""
    return SpecError(f"--set {key}: {model} has no such field", hint=f"did you mean `{near}`?{full}")


OTHER_NAMES = dict.fromkeys(("top_k", "topk", "experts_per_token"), "num_experts_per_tok") | dict.fromkeys(
    ("shared_experts", "n_shared_experts", "num_shared_experts", "shared_expert"), "shared"
)
"""Names that users know from papers and configs, and the fields that they mean. The words differ from the field's."""
_LONG_WORDS = {"kv": "key value", "vocabulary": "vocab", "attn": "attention", "ctx": "position", "dim": "size"}
"""Words that users write, and the words that the names of fields contain instead."""


def meant_field(name: str, known: Iterable[str]) -> str | None:
    """Return the field of `known` that users mean with another name, or None if there is no such field."""
    fields = list(known)
    other = OTHER_NAMES.get(name)
    return other if other in fields else _field_with_the_words_of(name, fields)


def _field_with_the_words_of(key: str, known: Iterable[str]) -> str | None:
    """Return the shortest field whose name contains all words of `key`, for example `num_key_value_heads` for
    `kv_heads`. Return None if there is no such field."""

    def words(name: str) -> set[str]:
        parts = " ".join(_LONG_WORDS.get(part, part) for part in name.lower().replace("-", "_").split("_"))
        return {part.rstrip("s") for part in parts.split()} - {"n", "num"}

    wanted = words(key)
    numbers = set(known) - {"layers", "head", "positions"}  # parts, not numbers
    matches = [name for name in numbers if wanted and wanted <= words(name) and name.endswith("s") >= key.endswith("s")]
    return min(matches, key=lambda name: (len(name), name), default=None)
