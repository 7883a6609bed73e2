"""Claims about norms and activations."""

from __future__ import annotations

from functools import partial

from llmbench.sizing.lower import lower
from llmbench.sizing.params import ONE_TOKEN
from llmbench.spec.catalog import load_bundled
from llmbench.textbook.claim import Claim, Figure, Reading

__all__ = ["CLAIMS"]

RMSNORM = "RMSNorm, arXiv 1910.07467"
GLU = "GLU variants, arXiv 2002.05202"
ASSUMED = "the textbook states no shape; 8,192 tokens of width 4,096 are assumed"


def norms(model: str) -> int:
    """Return the number of norms of a bundled model."""
    return sum(op.count for op in lower(load_bundled(model), ONE_TOKEN) if op.kind == "norm")


CLAIMS = (
    *(
        Claim(
            name=f"{label} norms",
            says=f"{label} has {claimed} norms",
            claimed=claimed,
            unit="count",
            bound="exact",
            at=at,
            source=source,
            figures=(Figure("2 per layer and one before the head", partial(norms, model)),),
            why="Every layer has two norms, and one more norm stands before the head.",
            command=f"llmbench params {model} --by op",
        )
        for label, claimed, at, source, model in (
            ("GPT-2", 26, "12 layers", "GPT-2 (Radford et al., 2019)", "gpt2"),
            ("LLaMA-2-7B", 34, "32 layers", "LLaMA 2, arXiv 2307.09288", "llama2-7b"),
        )
    ),
    *(
        Claim(
            name=f"RMSNorm {direction}",
            says=f"RMSNorm is {claimed}× as fast as LayerNorm, {direction}",
            claimed=claimed,
            at="[32, 1024, 4096]",
            source=RMSNORM,
            bound="or better",
            reading=Reading(f"norm {direction}", "time ratio", "LayerNorm", "RMSNorm"),
            why="Both read and write the same tensor once, if each is one kernel. torch's LayerNorm is one kernel, and"
            " RMSNorm in plain torch is several.",
        )
        for direction, claimed in (("forward", 1.9), ("backward", 1.8))
    ),
    *(
        Claim(
            name=f"SwiGLU {direction}",
            says=f"SwiGLU takes {claimed}× the time of GELU at equal parameters, {direction}",
            claimed=claimed,
            at=ASSUMED,
            source=GLU,
            reading=Reading(f"glu {direction}", "time ratio", "SwiGLU", "GELU"),
            why="The products have the same FLOPs. The product of gate and value is one more pass over memory.",
        )
        for direction, claimed in (("forward", 1.15), ("backward", 1.20))
    ),
    *(
        Claim(
            name=f"{kind} time",
            says=f"{label} takes {claimed}× the time of ReLU at equal parameters",
            claimed=claimed,
            at=f"{ASSUMED}; the comparison with ReLU is assumed",
            source=GLU,
            reading=Reading("glu forward", "time ratio", kind, "ReLU"),
            why="An activation is one pass over memory, whatever it computes. Most of the time goes into products.",
        )
        for label, kind, claimed in (("GELU", "GELU", 1.02), ("Swish", "SiLU", 1.03), ("GEGLU", "GEGLU", 1.12))
    ),
)
"""All claims of this topic."""
