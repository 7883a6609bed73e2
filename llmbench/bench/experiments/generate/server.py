"""A whole decoder that generates the first token after a prompt, one more token or a whole answer, eager or as a CUDA
graph.

Every tensor has a static shape. The cache is allocated in full at the start. A decoding step reads and writes the same
addresses at every context length. The host also has a record of the cache (sequence lengths, free slots), which it
updates outside the graph. A replay of the graph updates only the lengths on the device.

B batch, S prompt length, T tokens in the cache, V vocabulary.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from llmbench.errors import UnsupportedError
from llmbench.measure.clock import Call
from llmbench.measure.cuda import captured
from llmbench.model.decoder import Decoder
from llmbench.model.implementations.interface import Implementation
from llmbench.model.layer_cache import SlotCache
from llmbench.model.mixers import new_cache

__all__ = ["Server"]


class Server:
    """A model, prompts [B, S] and a cache for `capacity` tokens per sequence. Each pass chooses the most likely token.

    Candidates may share a server, because each call sets the cache length and the implementation. After a pass, `token`
    [B, 1] contains the chosen tokens, and `logits` [B, 1, V] contains the logits from which they were chosen. `cuda`:
    torch.cuda or a replacement for tests. Raises UnsupportedError for a model whose cache stores more than keys and
    values.
    """

    def __init__(self, model: Decoder, prompts: Tensor, capacity: int, *, cuda: Any = torch.cuda) -> None:
        self.model, self.prompts, self.cuda = model, prompts, cuda
        weight = model.embedding.weight
        self.cache = new_cache(
            model.spec, prompts.shape[0], capacity, kind="rolling", dtype=weight.dtype, device=weight.device
        )
        self.states: list[SlotCache] = []
        for state in (state for layer in self.cache.layers for state in layer.values()):
            if not isinstance(state, SlotCache):
                raise UnsupportedError(f"{model.spec.name}: generate supports only models that cache keys and values")
            self.states.append(state)
        self.lengths = self.cache.lengths
        self.token = prompts[:, -1:].clone()
        self.logits = torch.empty(0, dtype=weight.dtype, device=weight.device)

    @property
    def nbytes(self) -> int:
        """The bytes of the prompts and the cache."""
        return self.prompts.nbytes + self.cache.nbytes

    def fill(self, context: int) -> None:
        """Write random keys and values of `context` tokens into the cache."""
        steps = torch.arange(context, device=self.lengths.device).expand(self.lengths.shape[0], -1)
        for state in self.states:
            keys, values = (
                rows.data.new_empty(*rows.data.shape[:2], context, rows.data.shape[3]).normal_()
                for rows in (state.keys, state.values)
            )
            state.fill(keys, values, steps, None)

    def start(self, context: int) -> None:
        """Set the cache's length to `context` tokens in every sequence."""
        self.lengths.fill_(context)
        self.cache.host_lengths = [context] * len(self.cache.host_lengths)

    def first(self) -> None:
        """Empty the cache, read the prompts, and choose the first new token."""
        self.start(0)
        self._pass(self.prompts)

    def next(self) -> None:
        """Append the token that was chosen last, and choose the next token."""
        self._pass(self.token)

    def answer(self, count: int, step: Call) -> None:
        """Read the prompts and choose `count` tokens. The first token is chosen after the prompts. Each further token
        needs one call of `step`."""
        self.first()
        for _ in range(count - 1):
            step()

    def bound(self, implementation: Implementation, call: Call) -> Call:
        """Return a call that sets the model's implementation and then runs `call`."""

        def run() -> object:
            self.model.implementation = implementation
            return call()

        return run

    def captured(self, call: Call) -> Call:
        """Capture the call's work on the device as one CUDA graph. Raises CannotRunError if the call cannot be
        captured."""
        call()  # The first run allocates workspaces and tunes kernels, which is not possible during a capture.
        return captured(call, self.lengths.device, f"a step of {self.model.spec.name}", cuda=self.cuda)

    def _pass(self, tokens: Tensor) -> None:
        with torch.no_grad():
            self.logits = self.model(tokens, cache=self.cache, last_only=True)
            self.token.copy_(self.logits.argmax(dim=-1))
            # The model writes the new lengths to another tensor. Copy them back, because the next pass and every replay
            # of the graph read `self.lengths`.
            self.lengths.copy_(self.cache.lengths)
            self.cache.lengths = self.lengths
