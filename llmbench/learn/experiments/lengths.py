"""Past the training length: models with different position encodings, trained on short sequences, read longer ones.

The same tokens are scored at every length, so the losses of two lengths differ by the context alone. Each sequence ends
with the `SCORED` scored tokens. A shorter length leaves out the oldest tokens of the sequence.

Dimensions: W sequences, T tokens of the longest sequence, K scored tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from llmbench.errors import LLMBenchError, unknown
from llmbench.learn.data import Corpus
from llmbench.learn.experiments.arms import Arm, trained_arm
from llmbench.learn.experiments.statistics import Difference, paired
from llmbench.learn.metrics import StepRow
from llmbench.learn.settings import Settings
from llmbench.model.create import build
from llmbench.model.decoder import Decoder
from llmbench.sizing.lengths import beyond_positions
from llmbench.spec.model import ModelSpec
from llmbench.spec.override import override

__all__ = ["METHODS", "SCORED", "Method", "Score", "extrapolate", "methods_of"]

SCORED = 32
"""The number of scored tokens at the end of each sequence (K)."""
SEQUENCES = 64
"""The number of sequences that are scored (W)."""

EQUAL = 0.05
"""A method reads a length as well as the training length if the whole interval of the change lies within ± this loss in
nats. Such a change is 5% of the perplexity."""

Positions = Mapping[str, Any]
"""The field `positions` of a spec, as in TOML."""


class Method(NamedTuple):
    """A position encoding, and what it does beyond the training length.

    - `trained(length)`: the positions of the training, on sequences of this length.
    - `read(length, longer)`: the positions with which the trained weights read a longer sequence. None: the same.
    """

    name: str
    about: str
    trained: Callable[[int], Positions]
    read: Callable[[int, int], Positions] | None = None

    def positions(self, length: int, longer: int) -> Positions:
        """Return the positions for sequences of `longer` tokens, after a training on `length` tokens."""
        beyond = self.read if longer > length else None
        return self.trained(length) if beyond is None else beyond(length, longer)


def _rope(length: int) -> Positions:
    return {"kind": "rope"}


def _scaled(kind: str, *, factor: Callable[[int, int], float]) -> Callable[[int, int], Positions]:
    def read(length: int, longer: int) -> Positions:
        scaling: dict[str, Any] = {"kind": kind, "factor": factor(length, longer)}
        if kind != "linear":
            scaling["original_max_position_embeddings"] = length
        return {"kind": "rope", "scaling": scaling}

    return read


METHODS: tuple[Method, ...] = (
    Method("learned", "a trained table", lambda length: {"kind": "learned", "num_positions": length}),
    Method("sinusoidal", "sines and cosines (arXiv 1706.03762)", lambda length: {"kind": "sinusoidal"}),
    Method("rope", "rotary, unchanged (arXiv 2104.09864)", _rope),
    Method(
        "interpolation",
        "RoPE with compressed positions (arXiv 2306.15595)",
        _rope,
        _scaled("linear", factor=lambda length, longer: longer / length),
    ),
    # With the factor 1, the base grows with the sequence: base · (longer / length)^(d / (d - 2)).
    Method("ntk", "RoPE with a larger base", _rope, _scaled("dynamic", factor=lambda length, longer: 1.0)),
    Method(
        "yarn",
        "RoPE by YaRN (arXiv 2309.00071)",
        _rope,
        _scaled("yarn", factor=lambda length, longer: longer / length),
    ),
    Method("alibi", "a bias that grows with the distance (arXiv 2108.12409)", lambda length: {"kind": "alibi"}),
    Method("none", "no positions", lambda length: {"kind": "none"}),
)
"""The methods. No method trains on longer sequences: each changes at most how the trained weights are used."""


class Score(NamedTuple):
    """The loss of one method at one length, in nats.

    - `loss`: the mean over the scored tokens. None: the model has no positions for this length.
    - `change`: the loss minus that at the training length, paired by sequence. None at the training length.
    - `reason`: why there is no loss.
    """

    method: str
    length: int
    loss: float | None
    change: Difference | None
    reason: str = ""

    @property
    def verdict(self) -> str:
        """How well the method reads this length, compared with the training length."""
        if self.loss is None:
            return "cannot read"
        if self.change is None:
            return "trained length"
        low, high = self.change.low, self.change.high
        if low is not None and high is not None and low >= -EQUAL and high <= EQUAL:
            return "as well"
        return _VERDICTS[self.change.verdict]


_VERDICTS = {"lower": "better", "higher": "worse", "within noise": "within noise", "one pair": "unknown"}


def methods_of(names: Sequence[str]) -> list[Method]:
    """Return the named methods. Raises UnknownNameError."""
    known = {method.name: method for method in METHODS}
    for name in names:
        if name not in known:
            raise unknown("position method", name, list(known))
    return [known[name] for name in dict.fromkeys(names)]


def extrapolate(
    base: ModelSpec,
    data: Corpus,
    settings: Settings,
    methods: Sequence[Method],
    lengths: Sequence[int],
    *,
    on_step: Callable[[str, StepRow], object] = lambda name, row: None,
) -> list[Score]:
    """Train the model once for each position encoding, and score it at each length.

    `settings.seq_len` is the training length. `lengths`: the lengths of the sequences, of at least K tokens each.
    `on_step(method, row)` is called after each training step.

    Raises LLMBenchError if the text is too short, and SpecError if the model cannot have one of the encodings.
    """
    train_length = settings.seq_len
    base = override(base, {"max_position_embeddings": train_length})
    lengths = sorted({train_length, *lengths})
    if lengths[0] < SCORED:
        raise LLMBenchError(
            f"a length of {lengths[0]} tokens is too short: the last {SCORED} tokens of each sequence are scored"
        )
    data.refuse_short(lengths[-1])
    tokens, targets = data.windows(lengths[-1], SEQUENCES)
    trainings: dict[str, tuple[Mapping[str, Tensor], Tensor]] = {}
    scores = []
    for method in methods:
        trained = method.trained(train_length)
        key = str(trained)
        if key not in trainings:  # the methods of RoPE share one training
            arm = Arm(method.name, {"positions": trained})
            model, _ = trained_arm(base, arm, data, settings, on_step=partial(on_step, method.name))
            at_training = _losses(model.eval(), tokens[:, -train_length:], targets[:, -train_length:])
            trainings[key] = model.state_dict(), at_training
        weights, at_training = trainings[key]
        for length in lengths:
            spec = override(base, {"positions": method.positions(train_length, length)})
            reason = beyond_positions(spec, length)
            if reason is not None:
                scores.append(Score(method.name, length, None, None, reason))
            elif length == train_length:
                scores.append(Score(method.name, length, float(at_training.mean()), None))
            else:
                losses = _losses(_with_weights(spec, weights), tokens[:, -length:], targets[:, -length:])
                change = paired((losses - at_training).mean(dim=1).tolist())
                scores.append(Score(method.name, length, float(losses.mean()), change))
    return scores


def _with_weights(spec: ModelSpec, weights: Mapping[str, Tensor]) -> Decoder:
    model = build(spec, init="empty")
    model.load_state_dict(weights)
    return model.eval()


@torch.no_grad()
def _losses(model: Decoder, tokens: Tensor, targets: Tensor) -> Tensor:
    """Return the loss [W, K] of the last K tokens of each sequence, in nats. tokens, targets [W, T]."""
    parts = []
    for some, wanted in zip(tokens.split(16), targets.split(16), strict=True):
        logits = model(some)[:, -SCORED:].double()
        parts.append(F.cross_entropy(logits.transpose(1, 2), wanted[:, -SCORED:], reduction="none"))
    return torch.cat(parts)
