"""The variants that `dynamics` compares: norms at different places, and different first weights. No torch.

Sources: Xiong 2020 (arXiv 2002.04745) for pre-norm and post-norm, DeepNorm (arXiv 2203.00555), σReparam (arXiv
2303.06296), norms of queries and keys (arXiv 2302.05442).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from llmbench.errors import unknown
from llmbench.learn.experiments.arms import Arm
from llmbench.learn.settings import Settings
from llmbench.spec.deepnorm import deepnorm
from llmbench.spec.model import ModelSpec
from llmbench.spec.override import override

__all__ = ["ARMS", "NARROW", "SETTINGS", "arms_of", "base_of"]

SETTINGS = Settings(
    steps=400,
    batch=16,
    seq_len=64,
    schedule="constant",
    warmup=0,
    beta2=0.999,
    weight_decay=0.0,
    clip=0.0,
    validate_every=100,
)
"""AdamW with a constant rate, without decay and clipping, which could hide a failure."""

NARROW: Mapping[str, Any] = {
    "hidden_size": 64,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "head_dim": 16,
    "intermediate_size": 256,
    "tie_word_embeddings": False,
}
"""The changes of nanogpt-cpu for this experiment: a deep and narrow model trains in minutes on one CPU core."""


def base_of(spec: ModelSpec, layers: int) -> ModelSpec:
    """Return the spec with this number of layers."""
    return override(spec, {"num_hidden_layers": layers})


_POST = {"placement": "post", "final_norm": False}


def _pre(layers: int) -> Arm:
    return Arm("pre", {"placement": "pre"}, "vaswani")


def _deepnorm(layers: int) -> Arm:
    return Arm("deepnorm", {**_POST, "skip_scale": deepnorm(layers).alpha}, "deepnorm")


ARMS: dict[str, tuple[Callable[[int], Arm], str]] = {
    "pre": (_pre, "norms before each sublayer"),
    "post": (lambda layers: Arm("post", _POST, "vaswani"), "norms after each sum, as in the original Transformer"),
    "post-warmup": (
        lambda layers: Arm("post-warmup", _POST, "vaswani", {"warmup": 0.5}),
        "post, with a learning rate that rises in the first half of the steps",
    ),
    "deepnorm": (_deepnorm, "post, with a larger residual and smaller first weights"),
    "sandwich": (lambda layers: Arm("sandwich", {"placement": "sandwich"}, "vaswani"), "norms before and after"),
    "qk-norm": (
        lambda layers: Arm("qk-norm", {"placement": "pre", "qk_norm": {"over": "head"}}, "vaswani"),
        "pre, with norms on queries and keys",
    ),
    "sigma-reparam": (
        lambda layers: Arm("sigma-reparam", {"placement": "pre"}, "vaswani", reparametrised=True),
        "pre, with matrices of bounded norm",
    ),
    "pre-gpt2": (
        lambda layers: Arm("pre-gpt2", {"placement": "pre"}, "scaled"),
        "pre, with GPT-2's small first weights",
    ),
    "post-gpt2": (lambda layers: Arm("post-gpt2", _POST, "gpt2"), "post, with GPT-2's small first weights"),
}
"""Each arm as a function of the number of layers, and what it is. The first weights are those of the original
Transformer (`vaswani`), if the arm does not name others."""


def arms_of(names: Sequence[str], layers: int) -> list[Arm]:
    """Return the named arms. Raises UnknownNameError."""
    for name in names:
        if name not in ARMS:
            raise unknown("arm", name, list(ARMS))
    return [ARMS[name][0](layers) for name in dict.fromkeys(names)]
