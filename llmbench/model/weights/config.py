"""What a folder's config.json must say for its weights to be read, beyond what a spec holds."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from llmbench.errors import SpecError, UnsupportedError
from llmbench.model.weights.families import PARTS_OF_HEADS
from llmbench.spec.mixer import Attention, LatentAttention, branches
from llmbench.spec.model import ModelSpec
from llmbench.spec.position import Rope

_WITH_HEAD = ("ForCausalLM", "LMHeadModel", "ForMaskedLM", "ForConditionalGeneration", "ForPreTraining")
"""How the names of transformers' classes end that make logits over the vocabulary."""


def refuse_config(spec: ModelSpec, folder: Path) -> None:
    """Refuse what the description, made from `folder`, does not hold exactly: sizes may be right where logits are not.

    Raises UnsupportedError; SpecError where a key cannot be right.
    """
    if spec.approximate:
        raise UnsupportedError(f"{folder}: {spec.approximate[0]}")
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    if config.get("quantization_config"):
        raise UnsupportedError(f"{folder}: quantised checkpoints are not read")
    kinds = _architectures(config, folder)
    if kinds and not any(kind.endswith(_WITH_HEAD) for kind in kinds):
        raise UnsupportedError(
            f"{folder}: saved as {', '.join(kinds)}, a model without a language-model head",
            hint="save it from a class like AutoModelForCausalLM, so that the folder holds what makes logits",
        )
    if config.get("model_type") != spec.family:
        raise UnsupportedError(f"{folder}: the text part of `{config.get('model_type')}` is not read alone")
    if any(_turns_whole(spec, mixer, rope) for mixer, rope in _rotations(spec)):
        raise UnsupportedError(f"{folder}: this family's class turns whole heads, whatever the config says")


def _architectures(config: dict[str, Any], folder: Path) -> list[str]:
    """The classes that the model was saved from; none where the config does not say."""
    stated = config.get("architectures") or []
    kinds = [stated] if isinstance(stated, str) else stated
    if not isinstance(kinds, list) or not all(isinstance(kind, str) for kind in kinds):
        raise SpecError(f"{folder}: architectures in config.json must be a list of names")
    return kinds


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
