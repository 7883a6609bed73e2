"""Build a model from a spec, or load a model from a folder with config.json and safetensors files.

Modules are created on the meta device. Their memory is allocated once, on the final device. With this method, a model
with 7 billion parameters is ready in seconds.
"""

from __future__ import annotations

import os
from functools import reduce
from pathlib import Path
from typing import get_args

import torch
from torch import Tensor, nn

from llmbench.errors import unknown
from llmbench.model.arguments import dropout_share, whole_seed
from llmbench.model.decoder import Decoder
from llmbench.model.devices import device_of
from llmbench.model.formats import weight_format
from llmbench.model.initialise import Initialisation, initialise
from llmbench.model.seq2seq import model_of
from llmbench.model.weights import Checkpoint, fill, formats_of, refuse_missing_weights, table_of
from llmbench.model.weights.config import is_multimodal, refuse_config
from llmbench.spec.huggingface import load_config
from llmbench.spec.model import ModelSpec
from llmbench.spec.weights.multimodal import text_name

_ALWAYS_FP32 = ("correction",)
"""Buffers that stay in fp32 in every model. Training changes the correction of a router by steps so small that bf16
would round them away."""


def build(
    spec: ModelSpec,
    *,
    impl: str | None = None,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
    init: Initialisation = "scaled",
    seed: int = 0,
    dropout: float = 0.0,
) -> Decoder:
    """Build a model with random weights. Equal seeds give equal weights on the same device.

    - `init`, `seed`: how the weights get their first values. See `llmbench.model.initialise`.
    - `impl`: the implementation. None: the first of `PREFERENCE` in `llmbench.model.implementations` that computes the
      model. `model.implementation.name` is its name.
    - `dropout`: the share of elements that become 0 in training: of the embedding, of the attention probabilities and
      of the output of each sublayer. `model.eval()` switches dropout off. Its random numbers are those of
      `torch.manual_seed`.

    With the device "meta", the model has no memory.

    Raises UnsupportedError for a spec that the PyTorch model does not implement, CannotRunError for a missing device,
    SpecError and UnknownNameError for invalid arguments.
    """
    device, dtype, seed = device_of(device), weight_format(dtype), whole_seed(seed)
    dropout = dropout_share(dropout)
    if init not in get_args(Initialisation):
        raise unknown("initialisation", str(init), get_args(Initialisation))
    model = _on_meta(spec, impl)
    materialise(model, device=device, dtype=dtype)
    if device.type != "meta":
        initialise(model, init=init, seed=seed)
    model.dropout = dropout
    return model


def load(
    folder: str | Path,
    *,
    impl: str | None = None,
    device: torch.device | str = "cpu",
    dtype: torch.dtype | None = None,
) -> Decoder:
    """Load a model from a folder that `save_pretrained` of transformers wrote, or that was downloaded.

    Of a multimodal checkpoint, only the language model is loaded.

    - `folder`: the folder, or the path of its config.json.
    - `impl`: the implementation, as in `build`.
    - `dtype`: the number format of the model. The default is the narrowest format that represents all tensors exactly.
      A mix of fp16 and bf16 becomes fp32.

    Raises UnsupportedError for quantised weights, for a config with unknown fields, and for a family without a table of
    weight names. Raises SpecError if the files contradict the config. Also raises the errors of `build`.
    """
    device = device_of(device)
    folder = Path(folder)
    if folder.name == "config.json" and not os.path.isdir(folder):
        folder = folder.parent
    spec = load_config(folder)
    table_of(spec)
    refuse_config(spec, folder)
    checkpoint = Checkpoint(folder)
    if is_multimodal(spec, folder):
        checkpoint.rename(text_name)
    refuse_missing_weights(spec, checkpoint)
    formats = formats_of(spec, checkpoint)
    dtype = reduce(torch.promote_types, formats or {torch.float32}) if dtype is None else weight_format(dtype)
    model = _on_meta(spec, impl)
    materialise(model, device=device, dtype=dtype)
    fill(model, spec, checkpoint)
    return model.eval()


def _on_meta(spec: ModelSpec, impl: str | None) -> Decoder:
    with torch.device("meta"):
        return model_of(spec, impl=impl)


def materialise(model: nn.Module, *, device: torch.device | str, dtype: torch.dtype) -> None:
    """Allocate memory on `device` for every parameter and buffer of a model on meta.

    Tied parameters get one allocation together. Floating-point tensors get the number format `dtype`.
    """
    allocated: dict[int, Tensor] = {}

    def memory(tensor: Tensor, name: str) -> Tensor:
        if id(tensor) not in allocated:
            own_dtype = dtype if tensor.is_floating_point() and name not in _ALWAYS_FP32 else tensor.dtype
            new = torch.empty(tensor.shape, dtype=own_dtype, device=device)
            allocated[id(tensor)] = nn.Parameter(new, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else new
        return allocated[id(tensor)]

    for module in model.modules():
        for name, parameter in list(module._parameters.items()):
            if parameter is not None:
                module._parameters[name] = memory(parameter, name)  # type: ignore[assignment]
        for name, buffer in list(module._buffers.items()):
            if buffer is not None and buffer.is_meta:
                module._buffers[name] = memory(buffer, name)


def parameter_bytes(model: nn.Module) -> int:
    """Return the bytes of all parameters. Tied parameters count once."""
    return sum(p.nbytes for p in dict.fromkeys(model.parameters()))
