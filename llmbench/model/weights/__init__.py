"""Weights from files with Hugging Face names into the real model.

`fill` gives every parameter its tensor by the family's table, and fails unless each tensor of the file is used and
each parameter filled. Only families whose logits were shown equal to transformers' have a table; others are refused.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from llmbench.errors import SpecError, UnsupportedError
from llmbench.model.formats import holds_weights
from llmbench.model.weights.checkpoint import Checkpoint
from llmbench.model.weights.rules import TRANSFORMS, At, Rule
from llmbench.spec.model import Layer, ModelSpec

if TYPE_CHECKING:
    from llmbench.model.weights.families import Table

__all__ = ["Checkpoint", "fill", "formats_of", "supported_families", "table_of"]


def supported_families() -> list[str]:
    """Every family (Hugging Face model_type) whose weights can be read."""
    from llmbench.model.weights.families import TABLES

    return sorted(TABLES)


def table_of(spec: ModelSpec) -> Table:
    """The table of the model's family. Raises UnsupportedError where there are none."""
    from llmbench.model.weights.families import TABLES

    if spec.family not in TABLES:
        raise UnsupportedError(
            f"{spec.name}: reading weights of the family `{spec.family}` is not supported",
            hint=f"supported are {', '.join(supported_families())}",
        )
    return TABLES[spec.family]


def formats_of(spec: ModelSpec, checkpoint: Checkpoint) -> set[torch.dtype]:
    """The formats of a checkpoint's weights. Raises UnsupportedError naming those that are quantised: what is not
    floating cannot be told from codes of a quantisation."""
    formats = {name: checkpoint.dtype(name) for name in _weights_of(spec, checkpoint.names)}
    coded = sorted(name for name, dtype in formats.items() if not holds_weights(dtype))
    if coded:
        kinds = sorted({str(formats[name]).removeprefix("torch.") for name in coded})
        raise UnsupportedError(
            f"{checkpoint.folder}: quantised weights are not read: {_few(coded)} ({', '.join(kinds)})",
            hint="save the model in bf16, fp16 or fp32",
        )
    return set(formats.values())


def fill(model: nn.Module, spec: ModelSpec, checkpoint: Checkpoint) -> None:
    """Copy a checkpoint into the (materialised) model. Raises SpecError naming what is missing, left over or of another
    shape."""
    table = table_of(spec)
    names = checkpoint.names
    used: set[str] = set()
    missing: dict[str, int] = {}
    owners: dict[int, str] = {}
    for ours, held in model.state_dict(keep_vars=True).items():
        tied = owners.get(id(held))
        at = At(spec, _layer_of(spec, ours), ours)
        found = _sources(table.rules, at, names, held.shape[0])
        if found is None:
            missing[ours] = id(held)
            continue
        rule, sources = found
        tensor = _made(rule, sources, at, checkpoint)
        used.update(name for group in sources for name in group)
        if tuple(tensor.shape) != tuple(held.shape):
            raise SpecError(
                f"{checkpoint.folder}: {sources[0][0]} gives {ours} the shape {tuple(tensor.shape)}, "
                f"but the config says {tuple(held.shape)}"
            )
        if tied is not None:
            if not torch.equal(tensor.to(held), held):
                raise SpecError(f"{checkpoint.folder}: {ours} and {tied} are tied by the config, but differ")
            continue
        owners[id(held)] = ours
        with torch.no_grad():
            held.copy_(tensor)
    left = sorted(_weights_of(spec, names) - used)
    empty = [name for name, held_id in missing.items() if held_id not in owners]
    problems = [f"no tensor for {_few(empty)}"] if empty else []
    problems += [f"no use for {_few(left)}"] if left else []
    if problems:
        raise SpecError(f"{checkpoint.folder}: " + "; ".join(problems))


def _weights_of(spec: ModelSpec, names: set[str]) -> set[str]:
    """The tensors of a file that a model must have a use for."""
    table = table_of(spec)
    return {name for name in names if not table.ignores(name) and not _predicts_further(spec, name)}


def _predicts_further(spec: ModelSpec, name: str) -> bool:
    """Whether a tensor is of the multi-token-prediction modules, which files number as layers behind the last."""
    found = re.match(r"model\.layers\.(\d+)\.", name)
    if found is None or spec.next_token_prediction is None:
        return False
    return 0 <= int(found[1]) - spec.num_hidden_layers < spec.next_token_prediction.count


def _layer_of(spec: ModelSpec, name: str) -> Layer | None:
    parts = name.split(".")
    return spec.layers[spec.order[int(parts[1])]] if parts[0] == "layers" else None


def _sources(table: tuple[Rule, ...], at: At, names: set[str], copies: int) -> tuple[Rule, list[list[str]]] | None:
    """The first rule for a parameter whose tensors are all there."""
    for rule in table:
        sources = rule.names(at.name, copies)
        if sources and all(name in names for group in sources for name in group):
            return rule, sources
    return None


def _made(rule: Rule, sources: list[list[str]], at: At, checkpoint: Checkpoint) -> Tensor:
    made = []
    for group in sources:
        tensors = [checkpoint.tensor(name) for name in group]
        tensor = tensors[0] if len(tensors) == 1 else torch.cat(tensors)
        for name in rule.transforms:
            try:
                tensor = TRANSFORMS[name](tensor, at)
            except (RuntimeError, IndexError):
                raise SpecError(
                    f"{checkpoint.folder}: {group[0]} of shape {tuple(tensor.shape)} cannot become {at.name} of the "
                    "sizes in the config"
                ) from None
        made.append(tensor)
    return torch.stack(made) if rule.stacked else made[0]


def _few(names: list[str]) -> str:
    shown = ", ".join(names[:6])
    return shown if len(names) <= 6 else f"{shown} and {len(names) - 6} more"
