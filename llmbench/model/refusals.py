"""Checks that refuse specs and forward passes which the model cannot compute correctly."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import Tensor

from llmbench.errors import CannotRunError, UnsupportedError
from llmbench.model.cache import Cache
from llmbench.model.positions import Rotation, refuse_mixed_frequencies
from llmbench.sizing.lengths import refuse_beyond_positions
from llmbench.spec.ffn import MoE
from llmbench.spec.model import ExtraWeight, Layer, ModelSpec


def refuse_spec(spec: ModelSpec, *, has_encoder: bool) -> None:
    """Raise UnsupportedError for a spec that the PyTorch model does not implement."""
    if spec.encoder is not None and not has_encoder:
        raise UnsupportedError(
            f"{spec.name} has an encoder, which a Decoder does not build",
            hint="use llmbench.model.build, which builds a Seq2Seq",
        )
    if spec.undescribed:
        raise _only_sized(f"{spec.name}: {spec.undescribed[0]}")
    _refuse_extra(f"{spec.name}: extra", spec.extra)
    if spec.encoder is not None:
        _refuse_extra(f"{spec.name}: encoder.extra", spec.encoder.extra)
    if spec.hyper_connections is not None:
        raise _only_sized(f"{spec.name}: hyper_connections")
    refuse_layers(spec.name, spec.layers, "")


def refuse_layers(model: str, layers: Mapping[str, Layer], where: str) -> None:
    """Raise UnsupportedError if the PyTorch model does not implement one of the layers."""
    for name, layer in layers.items():
        path = f"{model}: {where}layers.{name}"
        _refuse_extra(f"{path}.extra", layer.extra)
        if layer.shared_weights is not None:
            raise _only_sized(f"{path}.shared_weights")


def _refuse_extra(where: str, extra: Sequence[ExtraWeight]) -> None:
    """Raise UnsupportedError for extra weights that change the logits."""
    used = [weight.name for weight in extra if weight.role != "unused"]
    if used:
        raise _only_sized(f"{where} ({', '.join(used)})")


def _only_sized(subject: str) -> UnsupportedError:
    return UnsupportedError(
        f"{subject}: not implemented in the PyTorch model yet",
        hint="`llmbench params`, `flops`, `kvcache` and `memory` work without building the model",
    )


def refuse_step(
    spec: ModelSpec,
    rotations: Sequence[Rotation],
    batch: int,
    length: int,
    *,
    cache: Cache | None,
    lengths: Tensor | None,
) -> None:
    """Refuse a forward pass in which the logits of a row would depend on other rows, on padding or on the use of a
    cache.

    - `length`: the number of tokens per row, including padding.
    - `lengths` [B]: the number of real tokens in each row. None: no row has padding.

    Raises SpecError for tokens past the last position of the model. Raises CannotRunError for rows that cannot share a
    pass, or for a cache that cannot be continued.
    """
    end = length if cache is None else length + cache.longest
    refuse_beyond_positions(spec, end)
    if any(rotation.regime(end) != rotation.regime(1) for rotation in rotations):
        before = [0] * batch if cache is None else cache.host_lengths
        new = [length] * batch if lengths is None else lengths.tolist()
        refuse_mixed_frequencies(rotations, before, [old + more for old, more in zip(before, new, strict=True)])
    if lengths is not None and _limits_experts(spec) and bool((lengths < length).any()):
        raise CannotRunError(
            f"{spec.name}: the rows need padding, and with a capacity_factor, padded tokens would take the "
            "places of real tokens in the experts",
            hint="pass rows of one length",
        )


def _limits_experts(spec: ModelSpec) -> bool:
    """Return whether the capacity of the experts depends on the number of tokens in a pass, including padding."""
    ffns = [layer.ffn for layer in spec.layers.values()]
    return any(isinstance(ffn, MoE) and ffn.capacity_factor is not None for ffn in ffns)
