"""The loss of a model on a text, in sliding windows, as in Hugging Face's guide on perplexity.

A window has W input tokens, and the next one begins `stride` tokens later. Each token of the text but the first is the
target of exactly one input: in the first window that contains the pair. With a stride below W, most targets have at
least W − stride tokens before them, so the loss is lower, and the computation takes W / stride times as long.

Dimensions: N tokens of the text, B windows, W tokens per window.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from llmbench.errors import LLMBenchError
from llmbench.learn.faults import NotFiniteError
from llmbench.learn.memory import loss_bytes, refuse_loss_without_memory
from llmbench.learn.refusals import refuse_other_models
from llmbench.model.arguments import token_rows
from llmbench.model.decoder import Decoder
from llmbench.sizing.lengths import refuse_beyond_positions

__all__ = ["Evaluation", "PositionLoss", "evaluate"]

PASS_BYTES = 2**29
"""The largest memory of several windows that share a forward pass. One window alone may need more."""
MOST_INPUTS = 10**10
"""The largest number of input tokens of all windows together."""


class PositionLoss(NamedTuple):
    """The mean loss of all targets that have from `first` to `last` tokens before them in their window, in nats."""

    first: int
    last: int
    tokens: int
    loss: float


class Evaluation(NamedTuple):
    """The losses [N − 1] of all tokens of a text but the first, in nats (fp64).

    `context` [N − 1]: the number of tokens before each target in its window.
    """

    losses: Tensor
    context: Tensor

    @property
    def loss(self) -> float:
        """The mean loss, in nats per token."""
        return float(self.losses.mean())

    def bits_per_byte(self, scored_bytes: int | None) -> float | None:
        """Return the bits that encode the text, per byte. `scored_bytes`: the bytes of all tokens but the first."""
        return None if not scored_bytes else float(self.losses.sum()) / math.log(2.0) / scored_bytes

    def by_position(self) -> list[PositionLoss]:
        """Return the mean losses by the number of tokens before the target: 1, 2, 3–4, 5–8, 9–16 and so on."""
        bins = torch.ceil(torch.log2(self.context.to(torch.float64))).to(torch.int64)
        rows = []
        for index in bins.unique().tolist():
            chosen = bins == index
            first, last = (1, 1) if index == 0 else (2 ** (index - 1) + 1, 2**index)
            last = min(last, int(self.context.max()))
            rows.append(PositionLoss(first, last, int(chosen.sum()), float(self.losses[chosen].mean())))
        return rows


@torch.no_grad()
def evaluate(
    model: Decoder,
    tokens: Tensor,
    *,
    window: int,
    stride: int | None = None,
    on_tokens: Callable[[int], object] = lambda done: None,
) -> Evaluation:
    """Return the loss of each token of a text.

    - `tokens` [N]: the text.
    - `window`: the number of input tokens W of a window. `stride`: the distance of two windows. None: W.
    - `on_tokens`: called with the number of targets so far, after each forward pass.

    Raises UnsupportedError for a model that does not predict the next token, SpecError or LLMBenchError for tokens, a
    window or a stride that do not fit, CannotRunError for a window that needs more than the free memory, and
    NotFiniteError for a model that computes NaN.
    """
    refuse_other_models(model.spec)
    spec = model.spec
    if len(tokens) < 2:
        raise LLMBenchError(
            f"the text has {len(tokens)} token(s); a loss needs at least 2, because the first token is not predicted"
        )
    stride = window if stride is None else stride
    if not 1 <= stride <= window:
        raise LLMBenchError(f"a stride of {stride:,} with windows of {window:,} tokens would leave out tokens")
    longest = min(window, len(tokens) - 1)
    refuse_beyond_positions(spec, longest)
    device = model.embedding.weight.device
    tokens = token_rows("tokens", tokens[None].to(device), spec.vocab_size, device)[0]
    read = _windows(len(tokens) - 1, window, stride) * window
    if read > MOST_INPUTS:
        raise LLMBenchError(
            f"the windows have {read:,} tokens together, which is more than {MOST_INPUTS:,}",
            hint="use a shorter text, a larger stride or smaller windows",
        )
    refuse_loss_without_memory(model, longest)
    batch = max(1, PASS_BYTES // loss_bytes(model, longest))
    model.eval()
    losses = torch.empty(len(tokens) - 1, dtype=torch.float64)
    context = torch.empty(len(tokens) - 1, dtype=torch.int32)
    for first, starts, size in _passes(len(tokens) - 1, window, stride, batch):
        places = starts[:, None] + torch.arange(size + 1)
        rows = tokens[places.to(device)]
        logits = model(rows[:, :-1])
        each = F.cross_entropy(
            logits.flatten(0, 1).to(torch.promote_types(logits.dtype, torch.float32)),
            rows[:, 1:].flatten(),
            reduction="none",
        )
        if not bool(each.isfinite().all()):
            raise NotFiniteError(model, rows[:, :-1])
        new = places[:, :-1] >= first[:, None]  # the pairs that no earlier window had
        losses[places[:, :-1][new]] = each.view(new.shape).cpu()[new].to(torch.float64)
        context[places[:, :-1][new]] = (torch.arange(size, dtype=torch.int32).expand(new.shape) + 1)[new]
        on_tokens(int(places[-1, -1]))
    return Evaluation(losses, context)


def _passes(pairs: int, window: int, stride: int, batch: int) -> Iterator[tuple[Tensor, Tensor, int]]:
    """Yield the forward passes over `pairs` pairs of an input and its target.

    A pass has the first new pair of each window [B], the first pair of each window [B], and their common size. The last
    window is shorter than the others if the text ends inside it, and then it has a pass of its own: so no window needs
    padding.
    """
    count = _windows(pairs, window, stride)
    last = min(window, pairs - (count - 1) * stride)
    whole = count if last == window else count - 1
    for begin in range(0, whole, batch):
        yield *_places(begin, min(begin + batch, whole), window, stride), window
    if whole < count:
        yield *_places(whole, count, window, stride), last


def _windows(pairs: int, window: int, stride: int) -> int:
    """Return the number of windows: the first one that reaches the last pair is the last one."""
    return 1 + max(0, -(-(pairs - window) // stride))


def _places(begin: int, end: int, window: int, stride: int) -> tuple[Tensor, Tensor]:
    """Return the first new pair and the first pair of the windows from number `begin` to number `end` − 1."""
    starts = torch.arange(begin, end) * stride
    return torch.where(starts == 0, 0, starts - stride + window), starts
