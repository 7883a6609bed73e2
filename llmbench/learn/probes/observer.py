"""Observe a model at chosen steps of its training.

An observation sees the gradients of the step, the weights before and after the update, and a forward pass on fixed
tokens. Its cost is that of a few forward passes, so only some steps are observed.

Dimensions: B sequences, S tokens, D hidden size, N heads.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from llmbench.learn.probe import Moment, Probe
from llmbench.model.attention_maps import AttentionMap, record_attention
from llmbench.model.decoder import Decoder
from llmbench.model.routing import Routing, record_routing

__all__ = ["EARLY", "Observation", "Observer", "PerLayer"]

PerLayer = list[float] | list[list[float]] | list[float | None]
"""One figure per layer, or one per head and layer. A layer without the observed part has None or an empty list."""

EARLY = (1, 2, 5, 10, 20, 50)
"""Steps that are always observed, because a collapse may take less than ten steps."""


class Observation(NamedTuple):
    """What the figures of one step are computed from.

    - `gradients`: the gradient of each parameter before clipping, by the name of the parameter.
    - `before`: the value of each parameter before the update. The model has the values after the update.
    - `streams`: the residual stream [B, S, D] after each layer, on the observed tokens, after the update.
    - `maps`: the attention of each layer on the observed tokens, after the update. None: the layer has no softmax
      attention.
    - `routings`: the decisions of the router of each layer on the observed tokens. None: the layer has no router.
    """

    step: int
    model: Decoder
    gradients: Mapping[str, Tensor]
    before: Mapping[str, Tensor]
    streams: list[Tensor]
    maps: list[AttentionMap | None]
    routings: list[Routing | None]

    def of_layer(self, index: int) -> Iterator[tuple[str, nn.Parameter]]:
        """Yield the name and the value of each parameter of a layer."""
        start = f"layers.{index}."
        return ((name, value) for name, value in self.model.named_parameters() if name.startswith(start))


class Observer(Probe):
    """Compute figures at the steps in EARLY, and then every `every` steps.

    - `tokens` [B, S]: the tokens of the forward pass. They are the same at all steps.
    - `figures`: functions of an observation, by name.

    `observations` gets the figures of each observed step, by name. They are also added to the row of the step. A step
    after which the model computes NaN or infinite numbers has no figures.
    """

    def __init__(
        self, tokens: Tensor, figures: Mapping[str, Callable[[Observation], PerLayer]], *, every: int = 50
    ) -> None:
        self.tokens, self.figures, self.every = tokens, figures, every
        self.observations: dict[int, dict[str, PerLayer]] = {}
        self._gradients: dict[str, Tensor] = {}
        self._before: dict[str, Tensor] = {}

    def observes(self, step: int) -> bool:
        """Return whether a step is observed."""
        return step in EARLY or step % self.every == 0

    def gradients(self, moment: Moment) -> None:
        if not self.observes(moment.step):
            return
        named = dict(moment.model.named_parameters())
        # Clipping and the update change both in place.
        self._gradients = {name: value.grad.clone() for name, value in named.items() if value.grad is not None}
        self._before = {name: value.detach().clone() for name, value in named.items()}

    def updated(self, moment: Moment) -> Mapping[str, Any] | None:
        if not self.observes(moment.step):
            return None
        # In evaluation, no dropout acts, and a σReparam matrix can be read without a step of its power iteration.
        with observed_pass(moment.model) as (streams, maps, routings):
            moment.model(self.tokens.to(moment.tokens.device))
            if not all(bool(stream.isfinite().all()) for stream in streams):
                return None  # the next step reports it
            layers = range(len(streams))
            observation = Observation(
                moment.step,
                moment.model,
                self._gradients,
                self._before,
                streams,
                [maps.get(f"layers.{index}.attention") for index in layers],
                [routings.get(f"layers.{index}.ffn.router") for index in layers],
            )
            found = {name: figure(observation) for name, figure in self.figures.items()}
        self._gradients, self._before = {}, {}
        self.observations[moment.step] = found
        return {"probes": found}


@contextmanager
def observed_pass(
    model: Decoder,
) -> Iterator[tuple[list[Tensor], dict[str, AttentionMap], dict[str, Routing]]]:
    """Record the residual stream after each layer, the attention and the routers in a forward pass of a `with` block.

    The block runs in evaluation and without gradients.
    """
    streams: list[Tensor] = []

    def record(module: nn.Module, inputs: Any, output: Any) -> None:
        streams.append(output[0].whole().detach())

    hooks = [layer.register_forward_hook(record) for layer in model.layers]
    training = model.training
    model.eval()
    try:
        with torch.no_grad(), record_attention(model) as maps, record_routing(model) as routings:
            yield streams, maps, routings
    finally:
        model.train(training)
        for hook in hooks:
            hook.remove()
