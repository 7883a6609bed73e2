"""Checks of a folder's config.json. They refuse a folder if our model would compute other logits than transformers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from llmbench.errors import SpecError, UnsupportedError
from llmbench.spec.huggingface.families.google import TIES_EVERY_HEAD
from llmbench.spec.mixer import AttentionKind
from llmbench.spec.model import ModelSpec
from llmbench.spec.position import Rope
from llmbench.spec.reading import read_text
from llmbench.spec.weights.families import TABLES
from llmbench.spec.weights.multimodal import MULTIMODAL

_WITH_HEAD = (
    "ForCausalLM",
    "LMHeadModel",
    "ForMaskedLM",
    "ForConditionalGeneration",
    "ForPreTraining",
    "MTModel",
    "GenerationDecoder",
)
"""Endings of class names in transformers. Classes with these endings compute logits over the vocabulary."""


def refuse_config(spec: ModelSpec, folder: Path) -> None:
    """Refuse a folder for which our model has the right shapes, but would compute other logits than transformers.

    Raises UnsupportedError for a folder that is refused, and SpecError for a wrong value in the config.
    """
    doubts = [reason for reason in spec.approximate if reason != TIES_EVERY_HEAD]  # `fill` compares head and table
    if doubts:
        raise UnsupportedError(f"{folder}: {doubts[0]}")
    config = json.loads(read_text(folder / "config.json"))
    if config.get("quantization_config"):
        raise UnsupportedError(
            f"{folder}: quantised checkpoints are not supported (the config has a quantization_config)",
            hint="save the model in bf16, fp16 or fp32",
        )
    kinds = _architectures(config, folder)
    if kinds and not any(kind.endswith(_WITH_HEAD) for kind in kinds):
        raise UnsupportedError(
            f"{folder}: the model was saved as {', '.join(kinds)}, which has no language-model head",
            hint="save it from a class with a head, such as AutoModelForCausalLM",
        )
    if is_multimodal(spec, folder) and config.get("model_type") not in MULTIMODAL:
        raise UnsupportedError(
            f"{folder}: checkpoints of the multimodal model type `{config.get('model_type')}` are not supported",
            hint="save only its language model",
        )
    if any(_rotates_whole(spec, mixer, rope) for mixer, rope in _rotations(spec)):
        raise UnsupportedError(
            f"{folder}: the config rotates a part of each head, "
            f"but in transformers the class of `{spec.family}` rotates whole heads"
        )


def is_multimodal(spec: ModelSpec, folder: Path) -> bool:
    """Return whether the spec describes only the language model of the checkpoint."""
    return bool(json.loads(read_text(folder / "config.json")).get("model_type") != spec.family)


def _architectures(config: dict[str, Any], folder: Path) -> list[str]:
    """Return the names of the classes from which the model was saved. Empty if the config names none."""
    stated = config.get("architectures") or []
    kinds = [stated] if isinstance(stated, str) else stated
    if not isinstance(kinds, list) or not all(isinstance(kind, str) for kind in kinds):
        raise SpecError(f"{folder}: architectures in config.json must be a list of names")
    return kinds


def _rotations(spec: ModelSpec) -> list[tuple[AttentionKind, Rope]]:
    pairs = [(mixer, spec.positions_of(mixer)) for mixer in spec.attentions]
    return [(mixer, positions) for mixer, positions in pairs if isinstance(positions, Rope)]


def _rotates_whole(spec: ModelSpec, mixer: AttentionKind, rope: Rope) -> bool:
    """Return whether transformers rotates whole heads although the config asks for rotating only a part of each head.

    Some classes do not read this config field, and rotate whole heads if the rotation is not scaled. In latent
    attention, the rotary part has a width of its own, and every class rotates the whole part.
    """
    if rope.rotary_dim is None:
        return False
    rotated = mixer.rotated_heads
    part_of_head = rotated is not None and rotated.width < mixer.key_dim
    return part_of_head or (rope.scaling is None and not TABLES[spec.family].partial_rotation)
