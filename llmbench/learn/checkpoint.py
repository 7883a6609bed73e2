"""Checkpoints of a training run: folders with model.safetensors, optimizer.safetensors and state.json.

A checkpoint is first written under a temporary name and flushed to the disk, and then renamed. A run that is killed at
any moment therefore leaves whole checkpoints only. Nothing is pickled, so a stranger's checkpoint runs no code.
"""

from __future__ import annotations

import os
import re
import shutil
from pathlib import Path

import msgspec
import torch
from torch import Tensor, nn

from llmbench.errors import LLMBenchError, SpecError
from llmbench.learn.parallel import divided_like, whole
from llmbench.learn.settings import Settings
from llmbench.model.create import build
from llmbench.model.decoder import Decoder
from llmbench.model.weights.checkpoint import tensors_in, write_tensors
from llmbench.sizing.params import count_parameters
from llmbench.spec.model import ModelSpec
from llmbench.spec.reading import read_bytes

__all__ = ["State", "checkpoints", "is_checkpoint", "load_model", "load_optimizer", "newest", "read_state", "save"]

MODEL, OPTIMIZER, STATE = "model.safetensors", "optimizer.safetensors", "state.json"
KEPT = 2
"""The number of checkpoints that a run keeps. The last one alone could be damaged by a failing disk."""
MOST_THREADS = 4096
"""The largest number of threads that a checkpoint may ask for."""

_NAME = re.compile(r"step-([0-9]{8,12})")
_TEMPORARY = ".unfinished-"


class State(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a checkpoint says beside its tensors.

    - `step`: the last finished step. `seconds`: the training time of all steps so far.
    - `data`: the source of the text (see Corpus). `data_sha256`: the hash of its train part.
    - `threads`: the number of CPU threads. It decides the order of sums, so a resumed run keeps it.
    - `versions`: the versions of llmbench, Python and torch.

    Everything random in a step depends on `settings.seed` and the step, so there is no state of a random generator.
    """

    schema: str = "llmbench.checkpoint/1"
    step: int
    seconds: float
    spec: ModelSpec
    settings: Settings
    data: str
    data_sha256: str
    threads: int
    command: str
    versions: dict[str, str]

    def __post_init__(self) -> None:
        if self.step < 0 or not 1 <= self.threads <= MOST_THREADS or not 0 <= self.seconds < float("inf"):
            raise ValueError(
                f"step {self.step}, {self.threads} threads and {self.seconds} seconds are no state of a run"
            )


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
    target = folder / f"step-{state.step:08d}"
    temporary = folder / f"{_TEMPORARY}{target.name}"
    try:
        for left in folder.glob(f"{_TEMPORARY}*"):  # a killed run left them
            shutil.rmtree(left, ignore_errors=True)
        temporary.mkdir()
        write_tensors(temporary / MODEL, weights)
        write_tensors(temporary / OPTIMIZER, states)
        with (temporary / STATE).open("xb") as file:
            file.write(msgspec.json.format(msgspec.json.encode(state), indent=2) + b"\n")
            file.flush()
            os.fsync(file.fileno())
        _flush(temporary)
        if target.exists():  # a run that goes on from an earlier checkpoint
            os.replace(target, folder / f"{_TEMPORARY}replaced")
        os.replace(temporary, target)
        _flush(folder)
        for old in checkpoints(folder)[:-KEPT]:
            shutil.rmtree(old, ignore_errors=True)
    except OSError as problem:
        raise LLMBenchError(f"cannot write the checkpoint {target}: {problem.strerror}") from None


def checkpoints(folder: Path) -> list[Path]:
    """Return the checkpoints of a run, the oldest first."""
    try:
        names = os.listdir(folder)
    except (OSError, ValueError):  # ValueError: the path contains a character that no file name can have
        return []
    steps = {int(match[1]): folder / name for name in names if (match := _NAME.fullmatch(name))}
    return [steps[step] for step in sorted(steps)]


def is_checkpoint(folder: Path) -> bool:
    """Return whether the folder is a checkpoint, or the folder of a run with checkpoints."""
    return os.path.isfile(folder / STATE) or bool(checkpoints(folder))


def newest(folder: Path) -> Path:
    """Return `folder` if it is a checkpoint, else its last checkpoint. Raises LLMBenchError if it has none."""
    if os.path.isfile(folder / STATE):
        return folder
    found = checkpoints(folder)
    if not found:
        raise LLMBenchError(f"{folder} has no checkpoint of `llmbench train`", hint="give the folder of its -o option")
    return found[-1]


def read_state(checkpoint: Path) -> State:
    """Return the state of a checkpoint. Raises SpecError if the file is missing or damaged."""
    path = checkpoint / STATE
    try:
        state = msgspec.json.decode(read_bytes(path), type=State)
        state.spec.check()
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as problem:
        raise SpecError(f"{path} is not the state of a checkpoint: {problem}") from None
    return state


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
    """Give an optimizer of `model` the states of a checkpoint. Raises SpecError for a damaged file."""
    tensors = tensors_in(checkpoint / OPTIMIZER)
    names = _names(model)
    for group in optimizer.param_groups:
        for weight in group["params"]:
            prefix = f"{names[weight]}/"
            states = {name.removeprefix(prefix): tensors.pop(name) for name in list(tensors) if name.startswith(prefix)}
            for key, value in states.items():
                if value.shape not in ((), weight.shape) or not value.is_floating_point():
                    raise SpecError(f"{checkpoint / OPTIMIZER}: {prefix}{key} does not fit the weight")
            device = {key: "cpu" if key == "step" and not group.get("fused") else weight.device for key in states}
            optimizer.state[weight] = {
                key: divided_like(value.to(device[key], copy=True), weight) for key, value in states.items()
            }
    if tensors:
        raise SpecError(f"{checkpoint / OPTIMIZER}: the model has no weight for {next(iter(tensors))}")


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
