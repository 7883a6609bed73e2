"""Checkpoints of a training run: folders with model.safetensors, optimizer.safetensors and state.json.

A checkpoint is first written under a temporary name and flushed to the disk, and then renamed. A run that is killed at
any moment therefore leaves whole checkpoints only. Nothing is pickled, so a stranger's checkpoint runs no code.
"""

from __future__ import annotations

import math
import os
import shutil
from pathlib import Path
from typing import Any

import msgspec
import torch
from torch import Tensor, nn

from llmbench.errors import LLMBenchError, SpecError
from llmbench.learn.parallel import divided_like, whole
from llmbench.learn.state import STATE, State, checkpoints, name_of, read_state
from llmbench.model.create import build
from llmbench.model.decoder import Decoder
from llmbench.model.weights.checkpoint import tensors_in, write_tensors
from llmbench.sizing.params import count_parameters
from llmbench.spec.weights.safetensors import short

__all__ = ["load_model", "load_optimizer", "save"]

MODEL, OPTIMIZER = "model.safetensors", "optimizer.safetensors"
KEPT = 2
"""The number of checkpoints that a run keeps. The last one alone could be damaged by a failing disk."""

_LEAST = {"step": 1.0, "exp_avg_sq": 0.0}
"""The least number that a state of an optimizer can have. `exp_avg_sq` is a mean of squares."""
_TEMPORARY = ".unfinished-"


def save(
    folder: Path, model: nn.Module, optimizer: torch.optim.Optimizer, state: State, *, writes: bool = True
) -> None:
    """Write the checkpoint of a step into `folder`, and remove all but the last `KEPT` checkpoints.

    `writes`: whether this rank writes the files. All ranks must call this function, because weights may be divided
    among them. Raises LLMBenchError if the checkpoint cannot be written.
    """
    weights = {name: whole(weight) for name, weight in _weights(model).items()}
    states = {name: whole(value) for name, value in _states(model, optimizer).items()}
    if not writes:
        return
    if state.step:
        names = [name for weight, name in _names(model).items() if not optimizer.state.get(weight)]
        state = msgspec.structs.replace(state, without_states=names)
    target = folder / name_of(state.step)
    temporary = folder / f"{_TEMPORARY}{target.name}"
    try:
        for left in folder.glob(f"{_TEMPORARY}*"):  # a killed run left them
            _remove(left)
        temporary.mkdir()  # fails if a link or anything else has this name
        try:
            write_tensors(temporary / MODEL, weights)
            write_tensors(temporary / OPTIMIZER, states)
            with (temporary / STATE).open("xb") as file:
                file.write(msgspec.json.format(msgspec.json.encode(state), indent=2) + b"\n")
                file.flush()
                os.fsync(file.fileno())
            _flush(temporary)
            os.replace(temporary, target)
        except BaseException:
            _remove(temporary)
            raise
        _flush(folder)
        for old in checkpoints(folder)[:-KEPT]:
            if old != target:  # another program can have made folders with later steps
                _remove(old)
    except OSError as problem:
        raise LLMBenchError(f"cannot write the checkpoint {target}: {problem.strerror}") from None


def load_model(checkpoint: Path, *, impl: str | None = None, device: torch.device | str = "cpu") -> Decoder:
    """Return the model of a checkpoint. Raises SpecError for a damaged file, and the errors of `build`."""
    spec, path = read_state(checkpoint).spec, checkpoint / MODEL
    tensors = tensors_in(path)
    stored, described = sum(tensor.numel() for tensor in tensors.values()), count_parameters(spec).total
    if 2 * stored < described:  # before a model is built, because a wrong spec can describe one of any size
        raise SpecError(f"{path}: the file has {stored:,} weights, but the spec describes {described:,}")
    model = build(spec, impl=impl, device=device, init="empty")
    _fill(_weights(model), tensors, path)
    return model


def load_optimizer(checkpoint: Path, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """Give an optimizer of `model` the states of a checkpoint.

    torch does not check them, and its kernels would read and write outside of a state with a wrong shape. Raises
    SpecError for a damaged file, and unless the states have the names, shapes and formats that the optimizer gives
    them, and numbers that it can compute.
    """
    path, state = checkpoint / OPTIMIZER, read_state(checkpoint)
    tensors, names, without = tensors_in(path), _names(model), set(state.without_states)
    for group in optimizer.param_groups:
        for weight in group["params"]:
            prefix = f"{names[weight]}/"
            has_states = state.step > 0 and names[weight] not in without
            expected = _states_of_a_weight(optimizer, group) if has_states else ()
            states = {key: tensors.pop(prefix + key, None) for key in expected}
            for key, value in states.items():
                if value is None:
                    raise SpecError(f"{path}: the state {prefix}{key} is missing")
                shape, dtype = ((), torch.float32) if key == "step" else (weight.shape, weight.dtype)
                if value.shape != shape or value.dtype != dtype:
                    raise SpecError(f"{path}: {prefix}{key} does not fit the weight")
                least = _LEAST.get(key, -math.inf)
                if not value.isfinite().all() or bool((value < least).any()):
                    raise SpecError(f"{path}: {prefix}{key} has a number that the optimizer cannot compute")
                if key == "step" and (float(value) > state.step or float(value) % 1):
                    raise SpecError(
                        f"{path}: {prefix}{key} is {float(value):g}, but the state is that of step {state.step}"
                    )
            device = {key: "cpu" if key == "step" and not group.get("fused") else weight.device for key in states}
            optimizer.state[weight] = {
                key: divided_like(value.to(device[key], copy=True), weight)
                for key, value in states.items()
                if value is not None
            }
    if tensors:
        raise SpecError(f"{path}: the optimizer has no state {short(next(iter(tensors)))}")


def _states_of_a_weight(optimizer: torch.optim.Optimizer, group: dict[str, Any]) -> tuple[str, ...]:
    """Return the names of the states that the optimizer keeps for a weight that had a gradient."""
    if isinstance(optimizer, torch.optim.SGD):
        return ("momentum_buffer",) if group["momentum"] else ()
    return ("step", "exp_avg", "exp_avg_sq")


def _remove(path: Path) -> None:
    """Remove a folder of a run, or a link or a file in its place. The target of a link stays."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def _names(model: nn.Module) -> dict[Tensor, str]:
    return {weight: name for name, weight in model.named_parameters()}


def _weights(model: nn.Module) -> dict[str, Tensor]:
    """Return the weights and stored buffers of a model by name. Tied weights have one name."""
    unique = {id(tensor): (name, tensor) for name, tensor in reversed(model.state_dict(keep_vars=True).items())}
    return {name: tensor.detach() for name, tensor in reversed(unique.values())}


def _fill(weights: dict[str, Tensor], tensors: dict[str, Tensor], path: Path) -> None:
    """Copy the tensors of a file into the weights of a model. Raises SpecError if they do not fit."""
    different = sorted(weights.keys() ^ tensors.keys())
    if different:
        raise SpecError(f"{path}: the tensor {different[0]} is in the file or in the model, but not in both")
    for name, weight in weights.items():
        if weight.shape != tensors[name].shape:
            shapes = tuple(tensors[name].shape), tuple(weight.shape)
            raise SpecError(f"{path}: {name} has the shape {shapes[0]}, but the spec says {shapes[1]}")
        if weight.dtype != tensors[name].dtype:
            formats = (str(dtype).removeprefix("torch.") for dtype in (tensors[name].dtype, weight.dtype))
            raise SpecError(f"{path}: {name} has the format {next(formats)}, but the model has {next(formats)}")
        if not tensors[name].isfinite().all():
            raise SpecError(f"{path}: {name} has a number that is NaN or infinite")
        weight.copy_(tensors[name])


def _states(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Return the states of an optimizer, by the name of the weight and the name of the state."""
    names = _names(model)
    return {
        f"{names[weight]}/{key}": value
        for weight, states in optimizer.state.items()
        for key, value in states.items()
        if isinstance(value, Tensor)
    }


def _flush(folder: Path) -> None:
    """Flush the names of the files in a folder to the disk."""
    file = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(file)
    finally:
        os.close(file)
