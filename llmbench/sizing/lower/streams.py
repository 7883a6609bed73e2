"""Hyper-connections as ops: several residual streams, and the small matrices that join and share them out.

A sublayer with m streams: a matrix m·D × (2·m, and m² more where the streams mix), as many biases, and 2 or 3
scales; mixing costs 2·m²·D FLOPs a token. Before the head: m·D × m, m biases and a scale.
"""

from __future__ import annotations

from llmbench.sizing.lower.builder import Builder, Dim, product
from llmbench.spec.model import HyperConnections


def join_streams(b: Builder, name: str, streams: HyperConnections) -> None:
    """What stands before one sublayer."""
    m = streams.streams
    ways = Dim(m * (m + 2), "streams × (streams + 2)") if streams.mixes else Dim(2 * m, "2 × streams")
    b.linear(f"{name}.fn", "other", product(Dim(m, "streams"), b.hidden), ways)
    b.vector(f"{name}.base", "other", ways)
    b.vector(f"{name}.scale", "other", Dim(3, "3") if streams.mixes else Dim(2, "2"))
    held = m * b.tokens * b.hidden.size
    flops = 2 * m * held if streams.mixes else 0
    b.add(
        f"{name}.mix",
        "other",
        "elementwise",
        forward_flops=flops,
        backward_flops=2 * flops,
        read_bytes=b.act(held),
        written_bytes=b.act(held),
        saved_bytes=b.act(held) if streams.mixes else 0,
    )


def join_head(b: Builder, streams: HyperConnections) -> None:
    """What makes one stream of them before the final norm."""
    m = Dim(streams.streams, "streams")
    b.linear("head_hc.fn", "other", product(m, b.hidden), m)
    b.vector("head_hc.base", "other", m)
    b.vector("head_hc.scale", "other", Dim(1, "1"))
