"""Past the training length: models with different position encodings, trained on short sequences, read longer ones.

The same tokens are scored at every length, so the losses of two lengths differ by the context alone. Each sequence ends
with the `SCORED` scored tokens. A shorter length leaves out the oldest tokens of the sequence.

Dimensions: W sequences, T tokens of the longest sequence, K scored tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from llmbench.learn.data import Corpus
from llmbench.learn.experiments.arms import Arm
from llmbench.learn.experiments.positions import SCORED, Method, base_of, lengths_of
from llmbench.learn.experiments.statistics import Difference, paired
from llmbench.learn.experiments.training import trained_arm
from llmbench.learn.metrics import StepRow
from llmbench.learn.settings import Settings
from llmbench.model.create import build
from llmbench.model.decoder import Decoder
from llmbench.sizing.lengths import beyond_positions
from llmbench.spec.model import ModelSpec
from llmbench.spec.override import override

__all__ = ["SEQUENCES", "Score", "extrapolate"]

SEQUENCES = 64
"""The number of sequences that are scored (W)."""

EQUAL = 0.05
"""A method reads a length as well as the training length if the whole interval of the change lies within ± this loss in
nats. Such a change is 5% of the perplexity."""


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
    base = base_of(base, methods, train_length)
    lengths = lengths_of(lengths, train_length)
    data.refuse_short(lengths[-1])
    tokens, targets = data.windows(lengths[-1], SEQUENCES)
    trainings: dict[str, tuple[Mapping[str, Tensor], Tensor]] = {}
    scores = []
    for method in methods:
        changes = method.changes(base, train_length, train_length)
        key = str(changes)
        if key not in trainings:  # the methods of RoPE share one training
            arm = Arm(method.name, changes)
            model, _ = trained_arm(base, arm, data, settings, on_step=partial(on_step, method.name))
            at_training = _losses(model.eval(), tokens[:, -train_length:], targets[:, -train_length:])
            trainings[key] = model.state_dict(), at_training
        weights, at_training = trainings[key]
        for length in lengths:
            spec = override(base, method.changes(base, train_length, length))
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
