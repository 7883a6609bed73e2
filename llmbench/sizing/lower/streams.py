"""The ops of hyper-connections: several residual streams, and the small matrices that join and distribute them.

Weights per sublayer with m streams: a matrix m·D × (2·m, and m² more if the streams mix), as many biases, and 2 or 3
scales. Mixing costs 2·m²·D FLOPs per token. Before the head: m·D × m, m biases and a scale.
"""

from __future__ import annotations

from llmbench.sizing.lower.builder import Builder, Dim, product
from llmbench.spec.model import HyperConnections


def join_streams(b: Builder, name: str, streams: HyperConnections) -> None:
    """Add the ops before one sublayer."""
    m = streams.streams
    outputs = Dim(m * (m + 2), "streams × (streams + 2)") if streams.mixes else Dim(2 * m, "2 × streams")
    b.linear(f"{name}.fn", "other", product(Dim(m, "streams"), b.hidden), outputs)
    b.vector(f"{name}.base", "other", outputs)
    b.vector(f"{name}.scale", "other", Dim(3, "3") if streams.mixes else Dim(2, "2"))
    elements = m * b.tokens * b.hidden.size
    flops = 2 * m * elements if streams.mixes else 0
    b.add(
        f"{name}.mix",
        "other",
        "elementwise",
        forward_flops=flops,
        backward_flops=2 * flops,
        read_bytes=b.act(elements),
        written_bytes=b.act(elements),
        saved_bytes=b.act(elements) if streams.mixes else 0,
    )


def join_head(b: Builder, streams: HyperConnections) -> None:
    """Add the ops that make one stream of all before the final norm."""
    m = Dim(streams.streams, "streams")
    b.linear("head_hc.fn", "other", product(m, b.hidden), m)
    b.vector("head_hc.base", "other", m)
    b.vector("head_hc.scale", "other", Dim(1, "1"))
