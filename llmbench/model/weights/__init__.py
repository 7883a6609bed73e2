"""Reading weights: copy the tensors of files with Hugging Face names into a model.

The table of the model's family says which tensors fill each parameter. `fill` copies these tensors. It raises an error
if a tensor in the files is not used, or if a parameter is not filled. A family gets a table only after a test shows
that its logits equal those of transformers. Families without a table are refused.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from llmbench.errors import SpecError, UnsupportedError
from llmbench.model.formats import holds_weights
from llmbench.model.weights.checkpoint import Checkpoint
from llmbench.model.weights.transforms import TRANSFORMS, Target
from llmbench.sizing.params import count_parameters
from llmbench.spec.model import Layer, ModelSpec
from llmbench.spec.weights.rules import Rule

if TYPE_CHECKING:
    from llmbench.spec.weights.families import Table

__all__ = ["Checkpoint", "fill", "formats_of", "refuse_missing_weights", "supported_families", "table_of"]


def supported_families() -> list[str]:
    """Return the sorted names (Hugging Face `model_type`) of all families whose weights can be read."""
    from llmbench.spec.weights.families import TABLES

    return sorted(TABLES)


def table_of(spec: ModelSpec) -> Table:
    """Return the table of the model's family. Raises UnsupportedError for a family without a table."""
    from llmbench.spec.weights.families import TABLES

    if spec.family not in TABLES:
        raise UnsupportedError(
            f"{spec.name}: reading weights of the family `{spec.family}` is not supported",
            hint=f"supported families: {', '.join(supported_families())}",
        )
    return TABLES[spec.family]


def formats_of(spec: ModelSpec, checkpoint: Checkpoint) -> set[torch.dtype]:
    """Return the number formats of the weights in a checkpoint.

    Raises UnsupportedError for weights that are not floating-point, because they may be quantised. The message names
    the tensors.
    """
    formats = {name: checkpoint.dtype(name) for name in _weights_of(spec, checkpoint.names)}
    coded = sorted(name for name, dtype in formats.items() if not holds_weights(dtype))
    if coded:
        kinds = sorted({str(formats[name]).removeprefix("torch.") for name in coded})
        raise UnsupportedError(
            f"{checkpoint.folder}: quantised weights are not supported: {_few(coded)} ({', '.join(kinds)})",
            hint="save the model in bf16, fp16 or fp32",
        )
    return set(formats.values())


def refuse_missing_weights(spec: ModelSpec, checkpoint: Checkpoint) -> None:
    """Refuse a checkpoint that has less than half of the weights of the config, before a model is built.

    `fill` compares names and shapes, but it needs a model. A config with a wrong number of layers can describe a model
    that takes long to build.
    """
    total = count_parameters(spec).total
    if 2 * checkpoint.elements < total:
        raise SpecError(
            f"{checkpoint.folder}: the files have {checkpoint.elements:,} weights, but the config describes {total:,}"
        )


def fill(model: nn.Module, spec: ModelSpec, checkpoint: Checkpoint) -> None:
    """Copy the weights of a checkpoint into a model whose memory is allocated.

    Raises SpecError if tensors are missing, not used, or have the wrong shape. The message names the tensors.
    """
    table = table_of(spec)
    names = checkpoint.names
    used: set[str] = set()
    missing: dict[str, int] = {}
    owners: dict[int, str] = {}
    for ours, parameter in model.state_dict(keep_vars=True).items():
        tied = owners.get(id(parameter))
        target = Target(spec, _layer_of(spec, ours), ours)
        match = _sources(table.rules, target, names, parameter.shape[0])
        if match is None:
            missing[ours] = id(parameter)
            continue
        rule, sources = match
        tensor = _assembled(rule, sources, target, checkpoint, parameter.shape)
        used.update(name for group in sources for name in group)
        if tuple(tensor.shape) != tuple(parameter.shape):
            raise SpecError(
                f"{checkpoint.folder}: {sources[0][0]} gives {ours} the shape {tuple(tensor.shape)}, "
                f"but the config says {tuple(parameter.shape)}"
            )
        if tied is not None:
            if not torch.equal(tensor.to(parameter), parameter):
                raise SpecError(f"{checkpoint.folder}: the config ties {ours} and {tied}, but their tensors differ")
            continue
        owners[id(parameter)] = ours
        with torch.no_grad():
            parameter.copy_(tensor)
    left = sorted(_weights_of(spec, names) - used)
    empty = [name for name, parameter_id in missing.items() if parameter_id not in owners]
    problems = [f"the files have no tensor for {_few(empty)}"] if empty else []
    problems += [f"the model has no parameter for {_few(left)}"] if left else []
    if problems:
        raise SpecError(f"{checkpoint.folder}: " + "; ".join(problems))


def _weights_of(spec: ModelSpec, names: set[str]) -> set[str]:
    """Return the names of the tensors that must fill a parameter."""
    table = table_of(spec)
    return {name for name in names if not table.ignores(name) and not _predicts_further(spec, name)}


def _predicts_further(spec: ModelSpec, name: str) -> bool:
    """Return whether a tensor belongs to a module for multi-token prediction.

    In the files, these modules have layer numbers that follow the number of the last layer.
    """
    layer = re.match(r"model\.layers\.(\d{1,9})\.", name)
    if layer is None or spec.next_token_prediction is None:
        return False
    return 0 <= int(layer[1]) - spec.num_hidden_layers < spec.next_token_prediction.count


def _layer_of(spec: ModelSpec, name: str) -> Layer | None:
    parts = name.split(".")
    return spec.layers[spec.order[int(parts[1])]] if parts[0] == "layers" else None


def _sources(
    table: tuple[Rule, ...], target: Target, names: set[str], copies: int
) -> tuple[Rule, list[list[str]]] | None:
    """Return the first rule that fills the parameter `target` from tensors that the files have.

    Also returns the names of these tensors. Returns None if there is no such rule.
    """
    for rule in table:
        sources = rule.names(target.name, copies)
        if sources and all(name in names for group in sources for name in group):
            return rule, sources
    return None


def _assembled(
    rule: Rule, sources: list[list[str]], target: Target, checkpoint: Checkpoint, shape: torch.Size
) -> Tensor:
    """Make the tensor of a parameter: join, transform and stack the tensors that the rule names.

    If the rule names no tensor, its transforms get an empty tensor of the parameter's `shape`.
    """
    tensors = []
    for group in sources:
        joined = [checkpoint.tensor(name) for name in group] or [torch.empty(shape)]
        tensor = joined[0] if len(joined) == 1 else torch.cat([torch.atleast_1d(part) for part in joined])
        for name in rule.transforms:
            try:
                tensor = TRANSFORMS[name](tensor, target)
            except (RuntimeError, IndexError):
                raise SpecError(
                    f"{checkpoint.folder}: {group[0]} has the shape {tuple(tensor.shape)}, which does not fit the "
                    f"config: {target.name} cannot be made from this tensor"
                ) from None
        tensors.append(tensor)
    return torch.stack(tensors) if rule.stacked else tensors[0]


def _few(names: list[str]) -> str:
    shown = ", ".join(names[:6])
    return shown if len(names) <= 6 else f"{shown} and {len(names) - 6} more"
