"""The decisions of the routers of a model, and the loss that balances the load of the experts.

Dimensions: t tokens, E experts, k experts per token.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from llmbench.errors import CannotRunError
from llmbench.model.decoder import Decoder
from llmbench.model.ffn import RouterLayer

__all__ = ["Routing", "balance_loss", "record_routing"]


class Routing(NamedTuple):
    """What one router decided in one forward pass.

    - `probabilities` [t, E]: the softmax of the logits. Of routers with a sigmoid, the sigmoids divided by their sum.
    - `chosen` [t, k]: the experts that the router selected for each token.
    """

    probabilities: Tensor
    chosen: Tensor

    @property
    def load(self) -> Tensor:
        """The share [E] of all selections that each expert got. The sum is 1."""
        counts = torch.bincount(self.chosen.flatten(), minlength=self.probabilities.shape[1])
        return counts / self.chosen.numel()


@contextmanager
def record_routing(model: Decoder) -> Iterator[dict[str, Routing]]:
    """Record what each router decides in the forward passes of a `with` block.

    Yields a dictionary from the name of a router, such as `layers.0.ffn.router`, to its Routing in the last forward
    pass. The probabilities have a gradient.
    """
    routings: dict[str, Routing] = {}

    def keep(name: str, module: RouterLayer, _: object, output: tuple[Tensor, Tensor, Tensor]) -> None:
        logits, _weights, chosen = output
        if module.router.scores in ("sigmoid", "sigmoid_topk"):
            scores = logits.sigmoid()
            routings[name] = Routing(scores / scores.sum(-1, keepdim=True), chosen)
        else:
            routings[name] = Routing(logits.softmax(-1), chosen)

    hooks = [
        module.register_forward_hook(partial(keep, name))
        for name, module in model.named_modules()
        if isinstance(module, RouterLayer)
    ]
    try:
        yield routings
    finally:
        for hook in hooks:
            hook.remove()


def balance_loss(routings: Iterable[Routing]) -> Tensor:
    """Return the loss that is smallest if all experts get the same load: the mean over routers of E · Σ f·P.

    f is the number of selections of an expert divided by t, and P is the mean of its probability. An even load gives k.
    Training adds a small multiple of it to its loss: 0.01 in the Switch Transformer, which adds the routers instead of
    taking their mean (arXiv 2101.03961, equations 4 to 6).

    Raises CannotRunError if there is no router.
    """
    losses = []
    for probabilities, chosen in routings:
        experts, top_k = probabilities.shape[1], chosen.shape[1]
        load = Routing(probabilities, chosen).load
        losses.append(experts * top_k * (load * probabilities.mean(0)).sum())
    if not losses:
        raise CannotRunError("the model has no router, so there is no load to balance")
    return torch.stack(losses).mean()
