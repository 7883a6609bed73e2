"""The ops of hyper-connections: several residual streams, and the small matrices that combine them.

With m streams of width D, each sublayer has a matrix with m·D inputs and 2·m outputs, one bias per output, and 2
scales. If the sublayer also mixes the streams, the matrix has m² more outputs, and there are 3 scales. Mixing costs
2·m²·D FLOPs per token. Before the head, there is a matrix with m·D inputs and m outputs, with m biases and one scale.
"""

from __future__ import annotations

from llmbench.sizing.lower.builder import Builder, Dim, product
from llmbench.spec.model import HyperConnections


def join_streams(b: Builder, name: str, streams: HyperConnections) -> None:
    """Add the ops that combine the streams to the input of a sublayer."""
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
    """Add the ops that combine all streams into one stream before the final norm."""
    m = Dim(streams.streams, "streams")
    b.linear("head_hc.fn", "other", product(m, b.hidden), m)
    b.vector("head_hc.base", "other", m)
    b.vector("head_hc.scale", "other", Dim(1, "1"))
