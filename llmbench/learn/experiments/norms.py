"""Training dynamics: how the placement of norms, the warm-up and the first weights decide whether a deep model trains.

Each arm trains at several learning rates, because a single rate cannot tell an arm that fails from an arm that needs a
lower rate (arXiv 2309.14322). All arms read the same batches.

Sources: Xiong 2020 (arXiv 2002.04745) for pre-norm and post-norm, DeepNorm (arXiv 2203.00555), σReparam (arXiv
2303.06296), norms of queries and keys (arXiv 2302.05442).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import msgspec

from llmbench.errors import unknown
from llmbench.learn.data import Corpus
from llmbench.learn.experiments.arms import Arm, trained_arm
from llmbench.learn.experiments.statistics import has_learned
from llmbench.learn.faults import DivergedError
from llmbench.learn.metrics import StepRow
from llmbench.learn.probes import FIGURES, Observer, PerLayer
from llmbench.learn.probes.warnings import Warning, warnings_of
from llmbench.learn.settings import Settings
from llmbench.model.initialise import deepnorm
from llmbench.spec.model import ModelSpec
from llmbench.spec.override import override

__all__ = ["ARMS", "NARROW", "SETTINGS", "Outcome", "arms_of", "base_of", "dynamics", "failed"]

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

OBSERVED = 4
"""The sequences of the forward pass of the probes."""


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


class Outcome(NamedTuple):
    """One training.

    - `losses`: the validation loss in nats after each of some steps.
    - `diverged`: why the training stopped: NaN or an infinite number. Empty: it did not stop.
    - `observations`: the figures of the probes at each observed step.
    """

    arm: str
    layers: int
    lr: float
    seed: int
    losses: list[tuple[int, float]]
    diverged: str
    observations: dict[int, dict[str, PerLayer]]
    warnings: list[Warning]
    seconds: float

    @property
    def loss(self) -> float | None:
        """The last validation loss in nats. None: the training stopped before its end."""
        return None if self.diverged or not self.losses else self.losses[-1][1]


def failed(outcome: Outcome, unigram: float) -> bool:
    """Return whether the model has learned hardly more than the frequencies of the tokens, or stopped."""
    return not has_learned(outcome.loss, unigram)


def arms_of(names: Sequence[str], layers: int) -> list[Arm]:
    """Return the named arms. Raises UnknownNameError."""
    for name in names:
        if name not in ARMS:
            raise unknown("arm", name, list(ARMS))
    return [ARMS[name][0](layers) for name in dict.fromkeys(names)]


def dynamics(
    spec: ModelSpec,
    data: Corpus,
    settings: Settings,
    names: Sequence[str],
    depths: Sequence[int],
    rates: Sequence[float],
    seeds: Sequence[int],
    *,
    on_step: Callable[[str, StepRow], object] = lambda name, row: None,
    on_outcome: Callable[[Outcome], object] = lambda outcome: None,
) -> list[Outcome]:
    """Train each arm at each depth, learning rate and seed. `on_outcome` is called after each training.

    Raises SpecError if the model has no such variant.
    """
    outcomes = []
    for layers in depths:
        base = base_of(spec, layers)
        arms = arms_of(names, layers)
        for arm in arms:
            arm.spec(base)  # refuse a variant before the first training
        for arm in arms:
            for rate in rates:
                for seed in seeds:
                    chosen = msgspec.structs.replace(settings, lr=rate, seed=seed)
                    outcomes.append(_outcome(base, arm, layers, data, chosen, on_step))
                    on_outcome(outcomes[-1])
    return outcomes


def _outcome(
    base: ModelSpec,
    arm: Arm,
    layers: int,
    data: Corpus,
    settings: Settings,
    on_step: Callable[[str, StepRow], object],
) -> Outcome:
    if "warmup" in arm.settings:  # a share of the steps
        arm = arm._replace(settings={**arm.settings, "warmup": round(arm.settings["warmup"] * settings.steps)})
    observer = Observer(data.windows(settings.seq_len, OBSERVED)[0], FIGURES)
    losses: list[tuple[int, float]] = []
    diverged, seconds = "", 0.0

    def stepped(row: StepRow) -> None:
        nonlocal seconds
        seconds = row.seconds
        on_step(f"{arm.name}, {layers} layers, rate {settings.lr:g}", row)

    try:
        trained_arm(
            base,
            arm,
            data,
            settings,
            probes=[observer],
            on_step=stepped,
            on_validation=lambda found: losses.append((found.step, found.validation_loss)),
        )
    except DivergedError as problem:
        diverged = str(problem)
    seen = observer.observations
    return Outcome(arm.name, layers, settings.lr, settings.seed, losses, diverged, seen, warnings_of(seen), seconds)
