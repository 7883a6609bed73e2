"""A model from a spec, or from a folder with config.json and safetensors.

Modules are made on the meta device and get memory once, where they will live, so that 7 billion parameters start in
seconds.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn

from llmbench.errors import UnsupportedError
from llmbench.model.decoder import Decoder
from llmbench.model.seq2seq import model_of
from llmbench.model.weights import Checkpoint, fill, table_of
from llmbench.model.weights.families import PARTS_OF_HEADS
from llmbench.spec.huggingface import load_config
from llmbench.spec.mixer import Attention, LatentAttention, branches
from llmbench.spec.model import ModelSpec
from llmbench.spec.position import Rope

Initialisation = Literal["gpt2", "scaled", "xavier", "empty"]
"""gpt2: normal with 0.02 everywhere. scaled: the same, and projections back into the residual stream smaller by
sqrt(2·layers) (GPT-2's paper, section 2.3). xavier: uniform by fan in and out. empty: memory as it is found."""

_INTO_RESIDUAL = ("o_proj", "down_proj", "out_proj")
"""Projections whose output is added to the residual stream."""

_WITH_HEAD = ("ForCausalLM", "LMHeadModel", "ForMaskedLM", "ForConditionalGeneration", "ForPreTraining")
"""How the names of transformers' classes end that make logits over the vocabulary."""

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
    """A model with random weights, the same for the same seed and device. On device "meta" it has no memory."""
    model = _on_meta(spec, impl)
    materialise(model, device=device, dtype=dtype)
    if torch.device(device).type != "meta" and init != "empty":
        initialise(model, init=init, seed=seed)
    return model


def load(
    folder: str | Path,
    *,
    impl: str = "sdpa",
    device: torch.device | str = "cpu",
    dtype: torch.dtype | None = None,
) -> Decoder:
    """The model that transformers' save_pretrained wrote into `folder`, or that was downloaded there; in the format of
    its tensors unless `dtype` says otherwise.

    Raises UnsupportedError where the family's logits were not shown equal to transformers', or the config has keys that
    are not understood; SpecError where file and config contradict each other.
    """
    folder = Path(folder)
    spec = load_config(folder)
    table_of(spec)
    _refuse_unknown(spec, folder)
    checkpoint = Checkpoint(folder)
    formats = {kind for kind in checkpoint.dtypes() if kind.is_floating_point}
    if any(kind.itemsize == 1 for kind in formats):
        raise UnsupportedError(f"{folder}: quantised checkpoints are not read")
    if dtype is None:
        dtype = max(formats, key=lambda kind: kind.itemsize, default=torch.float32)
    model = _on_meta(spec, impl)
    materialise(model, device=device, dtype=dtype)
    fill(model, spec, checkpoint)
    return model.eval()


def _on_meta(spec: ModelSpec, impl: str) -> Decoder:
    with torch.device("meta"):
        return model_of(spec, impl=impl)


def _refuse_unknown(spec: ModelSpec, folder: Path) -> None:
    """Refuse what the description does not hold exactly: sizes may be right where logits are not."""
    if spec.approximate:
        raise UnsupportedError(f"{folder}: {spec.approximate[0]}")
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    if config.get("quantization_config"):
        raise UnsupportedError(f"{folder}: quantised checkpoints are not read")
    stated = config.get("architectures") or []
    kinds = [kind for kind in ([stated] if isinstance(stated, str) else stated) if isinstance(kind, str)]
    if kinds and not any(kind.endswith(_WITH_HEAD) for kind in kinds):
        raise UnsupportedError(
            f"{folder}: saved as {', '.join(kinds)}, a model without a language-model head",
            hint="save it from a class like AutoModelForCausalLM, so that the folder holds what makes logits",
        )
    if config.get("model_type") != spec.family:
        raise UnsupportedError(f"{folder}: the text part of `{config.get('model_type')}` is not read alone")
    if any(_turns_whole(spec, mixer, rope) for mixer, rope in _rotations(spec)):
        raise UnsupportedError(f"{folder}: this family's class turns whole heads, whatever the config says")


def _rotations(spec: ModelSpec) -> list[tuple[Attention | LatentAttention, Rope]]:
    mixers = [mixer for layer in spec.layers.values() for mixer in branches(layer.mixer)]
    found = [(mixer, spec.positions_of(mixer)) for mixer in mixers if isinstance(mixer, (Attention, LatentAttention))]
    return [(mixer, positions) for mixer, positions in found if isinstance(positions, Rope)]


def _turns_whole(spec: ModelSpec, mixer: Attention | LatentAttention, rope: Rope) -> bool:
    """Whether transformers turns whole heads where the config says a part: without scaling, if the family's class does
    not read that key; and always the part of a latent head that is for positions alone."""
    if rope.rotary_dim is None:
        return False
    return isinstance(mixer, LatentAttention) or (rope.scaling is None and spec.family not in PARTS_OF_HEADS)


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
