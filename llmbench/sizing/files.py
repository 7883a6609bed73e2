"""Bytes of the weights of each op in the files of a checkpoint, from the headers of the files.

The names of the tensors say to which module they belong. A tensor that belongs to several ops, such as a fused matrix
of queries, keys and values, is divided by their numbers of parameters.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, NamedTuple

from llmbench.sizing.dtypes import Tensors
from llmbench.sizing.lower import lower
from llmbench.sizing.op import Op
from llmbench.sizing.stored_tensors import NEXT_TOKEN_PREDICTION, Recipe, next_token_prediction_bytes
from llmbench.sizing.workload import Workload
from llmbench.spec.weights.safetensors import short
from llmbench.spec.weights.tensors import PLAIN, FileTensor, FileTensors

if TYPE_CHECKING:
    from llmbench.spec.model import ModelSpec

__all__ = ["OTHER", "FileWeights"]

OTHER = "other_tensors"
"""The entry of the tensors that belong to no op, and to no part for another modality."""

_FLOATS = {"F64", "F32", "F16", "BF16"}
_EXPERT = re.compile(r"(?<=\bexperts\.)\d+(?=\.)")
_ENDING = re.compile(r"_(?:blocks|scales?|bias|scale_inv|packed|shape|zero_point)$")
_LAYER = re.compile(r"(?:^|\.)layers\.(\d{1,9})\.")
_OUTER = ("model", "language_model", "transformer", "decoder", "encoder")
"""Parts of names that contain the text part of a model."""


class _Instance(NamedTuple):
    """An op in one layer."""

    op: Op
    layer: int | None

    @property
    def elements(self) -> int:
        return self.op.parameters + self.op.buffers

    @property
    def name(self) -> str:
        return self.op.name if self.layer is None else self.op.name.replace("{}", str(self.layer))


class FileWeights:
    """The bytes of a checkpoint by op.

    - others: bytes of the tensors that belong to no op: the modules for multi-token prediction, the parts for other
      modalities by their names in the files, and OTHER.
    - named: names of the tensors of OTHER.
    - doubts: sentences about differences between the files and the spec.
    """

    def __init__(self, spec: ModelSpec, found: FileTensors, expected: Recipe) -> None:
        """expected: the format that the spec says. It decides the bytes that the files do not say."""
        self.found = found
        self._bytes: dict[tuple[str, int | None], int] = {}
        self._full: dict[tuple[str, int | None], int] = {}
        self.others: dict[str, int] = {}
        self.doubts: list[str] = []
        self.named = ""
        self._lost = False
        instances = []
        for op in lower(spec, Workload.prefill(1)):
            if op.parameters or op.buffers:
                instances += [_Instance(op, layer) for layer in op.layers or (None,)]
        for each in instances:  # kinds of layers can have ops with equal names and other widths
            self._full[each.op.name, each.layer] = each.elements
        if found.tensors is None:
            self._from_total(spec, instances, expected)
        else:
            self._from_tensors(spec, instances, found.tensors, expected)

    @property
    def differ(self) -> bool:
        """Whether at least one op has other bytes than those of the expected format."""
        return bool(self._bytes)

    @property
    def said_by_index(self) -> int | None:
        """The bytes of all tensors that the index says, if they differ from those of the files."""
        said = None if self.found.listed is None else self.found.listed.total_bytes
        return said if said != self.found.total_bytes else None

    @property
    def types(self) -> str:
        """The formats of the tensors, with the most bytes first: `bf16, fp32`, or `Q4_K, Q6_K, F32` of a GGUF file.

        Empty: no headers were read.
        """
        sizes: dict[str, int] = {}
        for tensor in (self.found.tensors or {}).values():
            name = tensor.dtype if self.found.gguf else PLAIN.get(tensor.dtype, tensor.dtype)
            sizes[name] = sizes.get(name, 0) + tensor.size
        return ", ".join(sorted(sizes, key=lambda name: -sizes[name]))

    def tensors(self, op: Op, layer: int | None) -> list[Tensors] | None:
        """Return the tensors of one instance of an op on a GPU. None: they are those of the expected format."""
        stored = self._bytes.get((op.name, layer))
        if stored is None:
            return None
        own, full = op.parameters + op.buffers, self._full[op.name, layer]
        return [Tensors("weights", -(-stored * own // full), 8)] if own else []

    def loaded_others(self, tp: int) -> list[Tensors]:
        """Return the tensors outside the ops that an engine loads, on one GPU. tp: GPUs that divide them.

        If the files have a tensor for every op, OTHER has only tensors that engines ignore, such as a stored copy of a
        tied head. llama.cpp loads all tensors of a GGUF file.
        """
        ignored = {NEXT_TOKEN_PREDICTION} if self._lost or self.found.gguf else {NEXT_TOKEN_PREDICTION, OTHER}
        return [Tensors(name, -(-size // tp), 8) for name, size in self.others.items() if name not in ignored]

    def _from_total(self, spec: ModelSpec, instances: list[_Instance], expected: Recipe) -> None:
        """Use the total of the index, because no file with tensors is there."""
        total = self.found.total_bytes
        if spec.weights.unknown:
            self.doubts.append("the files are missing, and their total is divided by the numbers of parameters")
            self._divide(instances, total)
            return
        own = sum(_expected(each, expected) for each in instances)
        more = dict(_apart(spec, expected))
        left = total - own - sum(more.values())
        if left > 0:
            more[OTHER] = left
        elif left < 0:
            self.doubts.append(
                f"the index says {total:,} bytes, but the config describes {total - left:,}: "
                "the total of the index is divided by the numbers of parameters"
            )
            self._divide(instances, total)
            return
        self.others = more

    def _divide(self, instances: list[_Instance], total: int) -> None:
        """Divide bytes over ops by their numbers of elements. The last op gets what division leaves."""
        elements = sum(each.elements for each in instances)
        at = done = 0
        for op, layer in instances:
            at += op.parameters + op.buffers
            upto = total * at // elements
            key = (op.name, layer)
            self._bytes[key] = self._bytes.get(key, 0) + upto - done
            done = upto

    def _from_tensors(
        self, spec: ModelSpec, instances: list[_Instance], tensors: Mapping[str, FileTensor], expected: Recipe
    ) -> None:
        owners = self._owners(spec, instances)
        modules: dict[str, list[FileTensor]] = {}
        other: dict[str, list[str]] = {}
        known: dict[str, str | None] = {}  # the experts of a layer have the same modules
        layers = spec.num_hidden_layers
        for name, tensor in tensors.items():
            first = _EXPERT.sub("0", name)
            if first not in known:
                known[first] = _module(first, owners)
            module = known[first]
            if module is not None:
                modules.setdefault(module, []).append(tensor)
                continue
            part = _part(name, layers)
            self.others[part] = self.others.get(part, 0) + tensor.size
            other.setdefault(part, []).append(name)
        differences: list[str] = []
        seen: set[int] = set()
        for members, stored in _groups(owners, modules):
            seen.update(members)
            own = [instances[index] for index in members]
            plain = not spec.weights.unknown and all(expected.storage(op, layer) is None for op, layer in own)
            size = sum(tensor.size for tensor in stored)
            differs = size != sum(_expected(each, expected) for each in own)
            if differs:
                self._divide(own, size)
            difference = _other_elements(own, stored, plain and not differs) or (
                _other_bits(own, stored) if differs else ""
            )
            if difference:
                differences.append(difference)
        lost = [each for index, each in enumerate(instances) if index not in seen]
        self._lost = bool(lost)
        for each in lost:
            self._bytes[each.op.name, each.layer] = 0
        if lost:
            elements = sum(each.elements for each in lost)
            named = _few([each.name for each in lost])
            self.doubts.append(f"the files have no tensor with a known name for {named} ({elements:,} parameters)")
        if self.found.lacking:
            self.doubts.append(f"the index names tensors that no file has: {_few(sorted(self.found.lacking))}")
        if differences:
            self.doubts.append("files and config differ: " + _few(differences, 3))
        self.named = _few(sorted(other.get(OTHER, ())))

    def _owners(self, spec: ModelSpec, instances: list[_Instance]) -> dict[str, list[int]]:
        """Return the ops of each module name, as indices of `instances`."""
        owners: dict[str, list[int]] = {}
        modules = self.found.names(spec)
        for index, each in enumerate(instances):
            for name in modules.names_of(each.op.name, each.layer):
                owners.setdefault(name, []).append(index)
        return owners


def _module(name: str, owners: Mapping[str, list[int]]) -> str | None:
    """Return the longest beginning of a tensor's name that is the name of a module."""
    while name and name not in owners:
        name = _ENDING.sub("", name) if _ENDING.search(name) else name.rpartition(".")[0]
    return name or None


def _part(name: str, layers: int) -> str:
    """Return the entry of a tensor that belongs to no op."""
    layer = _LAYER.search(name)
    parts = name.split(".")
    if "mtp" in parts[:2] or "nextn" in parts or (layer is not None and int(layer[1]) >= layers and "vis" not in name):
        return NEXT_TOKEN_PREDICTION
    inner = [part for part in parts[:-1] if part not in _OUTER]
    if not inner or inner[0] in ("layers", "h", "blk", "lm_head", "norm", "embed_tokens", "output"):
        return OTHER
    return short(inner[0])


def _groups(
    owners: Mapping[str, list[int]], modules: Mapping[str, list[FileTensor]]
) -> Iterator[tuple[list[int], list[FileTensor]]]:
    """Yield ops that share modules, with the tensors of these modules."""
    leader: dict[int, int] = {}

    def find(index: int) -> int:
        while leader.setdefault(index, index) != index:
            index = leader[index]
        return index

    for module in modules:
        first, *rest = owners[module]
        for index in rest:
            leader[find(index)] = find(first)
        find(first)
    members: dict[int, list[int]] = {}
    for index in leader:
        members.setdefault(find(index), []).append(index)
    stored: dict[int, list[FileTensor]] = {}
    for module, tensors in modules.items():
        stored.setdefault(find(owners[module][0]), []).extend(tensors)
    for root, indices in members.items():
        yield sorted(indices), stored[root]


def _expected(instance: _Instance, expected: Recipe) -> int:
    return sum(tensor.bytes for tensor in expected.tensors(instance.op, instance.layer))


def _apart(spec: ModelSpec, expected: Recipe) -> Iterator[tuple[str, int]]:
    """Yield the expected bytes of the parts that belong to no op."""
    size = next_token_prediction_bytes(spec, expected)
    if size:
        yield NEXT_TOKEN_PREDICTION, size
    yield from ((tower.kind, tower.bytes) for tower in expected.towers())


def _other_elements(own: list[_Instance], stored: list[FileTensor], plain: bool) -> str:
    """Return in words how the numbers of elements, or the shapes, of tensors and ops differ. Empty: they agree.

    plain: whether the ops are not quantised. Otherwise only tensors of floating-point numbers say their elements: those
    of quantised matrices contain several numbers each.
    """
    if not plain and not all(tensor.dtype in _FLOATS or tensor.block for tensor in stored):
        return ""
    elements, names = sum(each.elements for each in own), ", ".join(each.name for each in own)
    found = sum(tensor.elements for tensor in stored)
    if found != elements:
        return f"{names} has {found:,} elements in the files, {elements:,} by the config"
    sides = {each.op.owned_matrix for each in own}
    largest = max(stored, key=lambda tensor: tensor.elements)
    if len(sides) != 1 or None in sides or len(own) > 1 or largest.block:
        return ""
    copies, inputs, outputs = next(filter(None, sides))
    shape = sorted(length for length in largest.shape if length != 1)
    if copies != 1 or shape == sorted(length for length in (inputs, outputs) if length != 1):
        return ""
    said = f"{inputs:,} inputs and {outputs:,} outputs by the config"
    return f"{names} has the shape {list(largest.shape)} in the files, {said}"


def _other_bits(own: list[_Instance], stored: list[FileTensor]) -> str:
    """Return in words that tensors of quantised matrices have an impossible number of bits. Empty: they have not."""
    names = ", ".join(each.name for each in own)
    if all(tensor.dtype in _FLOATS or tensor.block for tensor in stored):
        return ""
    matrix = sum(_matrix_elements(each.op) for each in own) or sum(each.elements for each in own)
    sizes: dict[str, int] = {}
    for tensor in stored:
        sizes[tensor.dtype] = sizes.get(tensor.dtype, 0) + 8 * tensor.size
    bits = max(sizes.values()) / matrix
    if 1.9 < bits < 9 or abs(bits - 16) < 0.01 or abs(bits - 32) < 0.01:
        return ""
    return f"{names} has {bits:.3g} bits per element in the files"


def _matrix_elements(op: Op) -> int:
    if op.owned_matrix is None:
        return 0
    copies, inputs, outputs = op.owned_matrix
    return copies * inputs * outputs


def _few(names: list[str], most: int = 4) -> str:
    shown = ", ".join(map(short, names[:most]))
    return shown if len(names) <= most else f"{shown} and {len(names) - most} more"
