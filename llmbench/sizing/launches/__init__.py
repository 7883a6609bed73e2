"""Kernel launches: how many kernels each op of a forward pass launches, under a named fusion profile.

A profile says which ops share a kernel, and which ops need several. Its rules are data: they map the name of an op to a
number, or to a function that computes the number from the spec. An op that has no rule is unknown (None). It is never
counted as 0: 0 means that another op's kernel does the work too.

Not counted: work that no op describes (the positions of the tokens, and the sines and cosines of RoPE, which a pass
computes once), communication (see `Op.collectives`), and the backward pass.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal

from msgspec.structs import replace

from llmbench.sizing.launches import eager, fused, vllm
from llmbench.sizing.launches.place import Place, Profile
from llmbench.sizing.op import Op
from llmbench.sizing.workload import Workload
from llmbench.spec.model import ModelSpec
from llmbench.spec.position import NoPositions

__all__ = ["PROFILES", "ProfileName", "launches", "total_launches"]

ProfileName = Literal["eager", "fused", "vllm"]

PROFILES: dict[ProfileName, Profile] = {"eager": eager.PROFILE, "fused": fused.PROFILE, "vllm": vllm.PROFILE}


def launches(spec: ModelSpec, workload: Workload, op: Op, profile: ProfileName) -> int | None:
    """Return how many kernels all instances of an op launch in one step of inference. None: unknown."""
    shared = any(layer.shared_weights is not None for layer in spec.layers.values())
    if op.stack == "mtp" or workload.phase == "train" or spec.undescribed or shared:
        return None
    if op.stack == "encoder" and spec.encoder is not None:
        spec = replace(spec, positions=spec.encoder.positions or NoPositions())
    place = Place(spec, workload, op)
    rule = PROFILES[profile].rules.get(place.name)
    each = rule(place) if callable(rule) else rule
    return None if each is None else op.count * each


def total_launches(spec: ModelSpec, workload: Workload, ops: Iterable[Op], profile: ProfileName) -> int | None:
    """Return how many kernels the ops launch together. None: the launches of at least one op are unknown."""
    numbers = [launches(spec, workload, op, profile) for op in ops]
    known = [number for number in numbers if number is not None]
    return sum(known) if len(known) == len(numbers) else None
