"""A model from a spec, or from a folder with config.json and safetensors.

Modules are made on the meta device and get memory once, where they will live, so that 7 billion parameters start in
seconds.
"""

from __future__ import annotations

import math
from functools import reduce
from pathlib import Path
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from llmbench.errors import unknown
from llmbench.model.arguments import whole_seed
from llmbench.model.decoder import Decoder
from llmbench.model.devices import device_of
from llmbench.model.formats import weight_format
from llmbench.model.seq2seq import model_of
from llmbench.model.weights import Checkpoint, fill, formats_of, table_of
from llmbench.model.weights.config import refuse_config
from llmbench.spec.huggingface import load_config
from llmbench.spec.model import ModelSpec

Initialisation = Literal["gpt2", "scaled", "xavier", "empty"]
"""gpt2: normal with 0.02 everywhere. scaled: the same, and projections back into the residual stream smaller by
sqrt(2·layers) (GPT-2's paper, section 2.3). xavier: uniform by fan in and out. empty: memory as it is found."""

_INTO_RESIDUAL = ("o_proj", "down_proj", "out_proj")
"""Projections whose output is added to the residual stream."""

_KEPT_IN_FP32 = ("correction",)
"""Buffers whose format does not follow the model's: a router's correction is nudged by small steps."""


def build(
    spec: ModelSpec,
    *,
    impl: str = "sdpa",
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
    init: Initialisation = "scaled",
    seed: int = 0,
) -> Decoder:
    """A model with random weights, the same for the same seed and device. On device "meta" it has no memory.

    Raises UnsupportedError for what is not built, CannotRunError where the device is not there, SpecError and
    UnknownNameError for arguments that cannot be.
    """
    device, dtype, seed = device_of(device), weight_format(dtype), whole_seed(seed)
    if init not in get_args(Initialisation):
        raise unknown("initialisation", str(init), get_args(Initialisation))
    model = _on_meta(spec, impl)
    materialise(model, device=device, dtype=dtype)
    if device.type != "meta" and init != "empty":
        initialise(model, init=init, seed=seed)
    return model


def load(
    folder: str | Path,
    *,
    impl: str = "sdpa",
    device: torch.device | str = "cpu",
    dtype: torch.dtype | None = None,
) -> Decoder:
    """The model that transformers' save_pretrained wrote into `folder` (or into that of a config.json), or that was
    downloaded there. Without `dtype` it has the narrowest format that holds all tensors: theirs where they have one,
    fp32 where some are fp16 and some bf16.

    Raises UnsupportedError where the family's logits were not shown equal to transformers', the config has keys that
    are not understood, or weights are quantised; SpecError where file and config contradict each other; and for other
    arguments as `build`.
    """
    device = device_of(device)
    folder = Path(folder)
    if folder.name == "config.json" and not folder.is_dir():
        folder = folder.parent
    spec = load_config(folder)
    table_of(spec)
    refuse_config(spec, folder)
    checkpoint = Checkpoint(folder)
    formats = formats_of(spec, checkpoint)
    dtype = reduce(torch.promote_types, formats or {torch.float32}) if dtype is None else weight_format(dtype)
    model = _on_meta(spec, impl)
    materialise(model, device=device, dtype=dtype)
    fill(model, spec, checkpoint)
    return model.eval()


def _on_meta(spec: ModelSpec, impl: str) -> Decoder:
    with torch.device("meta"):
        return model_of(spec, impl=impl)


def materialise(model: nn.Module, *, device: torch.device | str, dtype: torch.dtype) -> None:
    """Give every meta parameter and buffer memory on `device`, tied ones once; floating ones become `dtype`."""
    made: dict[int, Tensor] = {}

    def memory(held: Tensor, name: str) -> Tensor:
        if id(held) not in made:
            kind = dtype if held.is_floating_point() and name not in _KEPT_IN_FP32 else held.dtype
            new = torch.empty(held.shape, dtype=kind, device=device)
            made[id(held)] = nn.Parameter(new, held.requires_grad) if isinstance(held, nn.Parameter) else new
        return made[id(held)]

    for module in model.modules():
        for name, parameter in list(module._parameters.items()):
            if parameter is not None:
                module._parameters[name] = memory(parameter, name)  # type: ignore[assignment]
        for name, buffer in list(module._buffers.items()):
            if buffer is not None and buffer.is_meta:
                module._buffers[name] = memory(buffer, name)


def initialise(model: Decoder, *, init: Initialisation, seed: int = 0) -> None:
    """Random weights: matrices and tables by `init`, biases and other vectors zero, and then whatever a module of ours
    says itself by `reset_parameters` (norms, decays)."""
    layers = model.spec.num_hidden_layers
    device = next(model.parameters()).device
    generator = torch.Generator(device=device).manual_seed(seed)
    done: set[int] = set()
    with torch.no_grad():
        for name, held in [*model.named_parameters(), *model.named_buffers()]:
            if id(held) in done or not held.is_floating_point():
                continue
            done.add(id(held))
            if held.dim() < 2 or (name.endswith("_bias") and "relative" not in name):
                held.zero_()
            elif init == "xavier":
                bound = math.sqrt(6.0 / (held.shape[-1] + held.shape[-2]))
                held.uniform_(-bound, bound, generator=generator)
            else:
                inwards = init == "scaled" and any(part in name for part in _INTO_RESIDUAL)
                held.normal_(0.0, 0.02 / math.sqrt(2 * layers) if inwards else 0.02, generator=generator)
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        for module in model.modules():
            reset = getattr(module, "reset_parameters", None)
            if reset is not None and type(module).__module__.startswith("llmbench."):
                reset()


def parameter_bytes(model: nn.Module) -> int:
    """Bytes of all parameters, tied ones once."""
    return sum(p.nbytes for p in dict.fromkeys(model.parameters()))
