"""Conditions on a folder's config.json, beside its spec, for its weights to be read."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from llmbench.errors import SpecError, UnsupportedError
from llmbench.model.weights.families import TABLES
from llmbench.spec.mixer import AttentionKind
from llmbench.spec.model import ModelSpec
from llmbench.spec.position import Rope

_WITH_HEAD = ("ForCausalLM", "LMHeadModel", "ForMaskedLM", "ForConditionalGeneration", "ForPreTraining")
"""Endings of the names of transformers' classes that compute logits over the vocabulary."""


def refuse_config(spec: ModelSpec, folder: Path) -> None:
    """Refuse a folder whose logits would differ from transformers': the sizes of `spec`, read from it, may be right
    even so.

    Raises UnsupportedError, or SpecError for a wrong value in the config.
    """
    if spec.approximate:
        raise UnsupportedError(f"{folder}: {spec.approximate[0]}")
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    if config.get("quantization_config"):
        raise UnsupportedError(
            f"{folder}: its config has quantization_config, and quantised checkpoints are not supported",
            hint="save the model in bf16, fp16 or fp32",
        )
    kinds = _architectures(config, folder)
    if kinds and not any(kind.endswith(_WITH_HEAD) for kind in kinds):
        raise UnsupportedError(
            f"{folder}: saved as {', '.join(kinds)}, a model without a language-model head",
            hint="save it from a class like AutoModelForCausalLM, which has the head",
        )
    if config.get("model_type") != spec.family:
        raise UnsupportedError(
            f"{folder}: a checkpoint of the multimodal `{config.get('model_type')}` is not supported",
            hint="save its language model alone",
        )
    if any(_rotates_whole(spec, mixer, rope) for mixer, rope in _rotations(spec)):
        raise UnsupportedError(
            f"{folder}: the config rotates a part of each head, but the class of `{spec.family}` rotates whole heads"
        )


def _architectures(config: dict[str, Any], folder: Path) -> list[str]:
    """The classes that the model was saved from; empty where the config states none."""
    stated = config.get("architectures") or []
    kinds = [stated] if isinstance(stated, str) else stated
    if not isinstance(kinds, list) or not all(isinstance(kind, str) for kind in kinds):
        raise SpecError(f"{folder}: architectures in config.json must be a list of names")
    return kinds


def _rotations(spec: ModelSpec) -> list[tuple[AttentionKind, Rope]]:
    pairs = [(mixer, spec.positions_of(mixer)) for mixer in spec.attentions]
    return [(mixer, positions) for mixer, positions in pairs if isinstance(positions, Rope)]


def _rotates_whole(spec: ModelSpec, mixer: AttentionKind, rope: Rope) -> bool:
    """Whether transformers rotates whole heads where the config states a part.

    A class that does not read the key does so unless the rotation is scaled. Every class does so for latent attention,
    whose rotated part is a width of its own.
    """
    if rope.rotary_dim is None:
        return False
    rotated = mixer.rotated_heads
    part_of_head = rotated is not None and rotated.width < mixer.key_dim
    return part_of_head or (rope.scaling is None and not TABLES[spec.family].partial_rotation)
