"""The fields of the communication of a training step."""

from __future__ import annotations

from typing import TYPE_CHECKING

from llmbench.report.fields import Field

if TYPE_CHECKING:
    from llmbench.sizing.communication import Communication

COMMUNICATION: tuple[Field[Communication], ...] = (
    Field("kind", description="`all_reduce`, `all_gather`, `reduce_scatter`, `all_to_all`, or `send` to another stage"),
    Field(
        "group",
        description="the GPUs that communicate: `tp`, `cp`, `ep`, `etp`, `dp` (those with the same part of a weight), "
        "`expert_dp` (of an expert), `fsdp` (those that store shards of a weight) or `pp` (pipeline stages)",
    ),
    Field("when", description="`forward`, `backward`, or `step`: once per optimizer step"),
    Field("calls", description="number of calls; null if the framework's buckets decide it"),
    Field(
        "bytes",
        description="bytes of the whole tensors of all calls, not of the traffic on a link: the reduced tensor, the "
        "gathered result, the input of a reduce-scatter, and what one GPU sends in an all-to-all",
    ),
)
"""The fields of the objects in the field `communication`."""
