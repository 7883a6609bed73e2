"""Models trained for a few steps on a task that a small one learns: counting on, by a stride that each sequence shows.

Enough to tell whether a model learns at all, and whether it reads on past the length that it was trained at; nothing
about how well it would do on text.
"""

from __future__ import annotations

import torch
from torch import Tensor

from llmbench.model import build
from llmbench.model.decoder import Decoder
from llmbench.spec.model import ModelSpec

__all__ = ["TAIL", "progressions", "trained"]

TAIL = 10
"""The loss at the end is the mean of so many steps."""


def progressions(vocab_size: int, batch: int, length: int, seed: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Tokens [B, S] and those that come next: start, start + stride, … modulo the vocabulary, strides from 1 to 7."""
    generator = torch.Generator().manual_seed(seed)
    start = torch.randint(vocab_size, (batch, 1), generator=generator)
    stride = torch.randint(1, 8, (batch, 1), generator=generator)
    tokens = ((start + stride * torch.arange(length + 1)) % vocab_size).to(device)
    return tokens[:, :-1], tokens[:, 1:]


def trained(
    spec: ModelSpec, *, steps: int, length: int, device: torch.device, batch: int = 8, learning_rate: float = 1e-3
) -> tuple[Decoder, list[float]]:
    """A model in fp32 after so many steps of AdamW without warm-up, and its loss at each."""
    model = build(spec, device=device, init="xavier")
    optimizer = torch.optim.AdamW(model.parameters(), lr=learning_rate)
    losses = []
    for step in range(steps):
        tokens, targets = progressions(spec.vocab_size, batch, length, step, device)
        loss = model(tokens, targets=targets)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        losses.append(loss.detach())
    return model, torch.stack(losses).tolist()
