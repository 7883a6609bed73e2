"""Feed-forwards as modules: dense, gated and mixtures of experts.

B batch, S length, D hidden, F intermediate, E experts, k experts a token, t = B·S tokens.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, assert_never

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from llmbench.errors import UnsupportedError
from llmbench.model.implementations.interface import ExpertWeights, Implementation
from llmbench.model.implementations.plain import activation
from llmbench.model.norms import times
from llmbench.spec.ffn import FFN, Dense, Gated, MoE, Router


class DenseLayer(nn.Module):
    """down(act(up(x)))."""

    def __init__(self, hidden: int, ffn: Dense) -> None:
        super().__init__()
        self.act = activation(ffn.activation)
        self.up_proj = nn.Linear(hidden, ffn.intermediate_size, bias=ffn.bias)
        self.down_proj = nn.Linear(ffn.intermediate_size, hidden, bias=ffn.bias)

    def forward(self, x: Tensor, implementation: Implementation) -> Tensor:
        """[B, S, D] to [B, S, D]."""
        return self.down_proj(self.act(self.up_proj(x)))


class GatedLayer(nn.Module):
    """down(act(gate(x)) * up(x))."""

    def __init__(self, hidden: int, ffn: Gated) -> None:
        super().__init__()
        self.activation = ffn.activation
        self.scales = ffn.gate_scale, ffn.output_scale
        self.gate_proj = nn.Linear(hidden, ffn.intermediate_size, bias=ffn.bias)
        self.up_proj = nn.Linear(hidden, ffn.intermediate_size, bias=ffn.bias)
        self.down_proj = nn.Linear(ffn.intermediate_size, hidden, bias=ffn.bias)

    def forward(self, x: Tensor, implementation: Implementation) -> Tensor:
        """[B, S, D] to [B, S, D]."""
        on_gate, on_output = self.scales
        inner = implementation.glu(times(self.gate_proj(x), on_gate), self.up_proj(x), self.activation)
        return times(self.down_proj(inner), on_output)


class RouterLayer(nn.Module):
    """Scores of all experts and the choice among them, in fp32."""

    def __init__(self, hidden: int, moe: MoE) -> None:
        super().__init__()
        self.router: Router = moe.router
        self.top_k = moe.num_experts_per_tok
        choices = moe.num_experts + moe.zero_experts
        self.weight = nn.Parameter(torch.empty(choices, hidden))
        self.bias = nn.Parameter(torch.empty(choices)) if moe.router.bias else None
        self.correction: Tensor | None
        if moe.router.correction == "buffer":
            self.register_buffer("correction", torch.empty(choices, dtype=torch.float32))
        elif moe.router.correction == "parameter":
            self.correction = nn.Parameter(torch.empty(choices, dtype=torch.float32))
        else:
            self.correction = None

    def forward(self, x: Tensor, implementation: Implementation) -> tuple[Tensor, Tensor, Tensor]:
        """Tokens [t, D] to logits [t, E], weights [t, k] and indices [t, k] of the chosen."""
        logits = F.linear(x.float(), self.weight.float(), None if self.bias is None else self.bias.float())
        return logits, *implementation.route(logits, self.top_k, self.correction, self.router)


class ExpertsLayer(nn.Module):
    """The experts' matrices, stacked: gate and up [E, F, D], down [E, D, F]."""

    def __init__(self, hidden: int, moe: MoE) -> None:
        super().__init__()
        experts, width = moe.num_experts, moe.intermediate_size
        self.moe = moe
        self.gate_proj = nn.Parameter(torch.empty(experts, width, hidden)) if moe.gated else None
        self.up_proj = nn.Parameter(torch.empty(experts, width, hidden))
        self.down_proj = nn.Parameter(torch.empty(experts, hidden, width))
        self.gate_bias = nn.Parameter(torch.empty(experts, width)) if moe.bias and moe.gated else None
        self.up_bias = nn.Parameter(torch.empty(experts, width)) if moe.bias else None
        self.down_bias = nn.Parameter(torch.empty(experts, hidden)) if moe.bias else None

    def forward(self, x: Tensor, weights: Tensor, chosen: Tensor, implementation: Implementation) -> Tensor:
        """Tokens [t, D], weights and indices [t, k] to [t, D]: the tokens' copies [t·k, D] in the order of their
        experts, each expert on its own, and back. Experts beyond num_experts give a token back as it is."""
        if implementation.experts is not None:
            return implementation.experts(x, weights, chosen, self.held, self.moe)
        choices = chosen.flatten()
        order = choices.argsort(stable=True)
        inputs = x[order // chosen.shape[1]]
        if self.moe.router.on_input:
            inputs = inputs * weights.flatten()[order, None].to(inputs.dtype)
        *copies, beyond = inputs.split(self.rows(choices))
        made = self._made(copies, implementation)
        return self._combined(torch.cat([*made, beyond])[order.argsort()], weights)

    def in_buffers(
        self, x: Tensor, weights: Tensor, chosen: Tensor, places: Tensor, room: int, implementation: Implementation
    ) -> Tensor:
        """The same, each expert on a buffer of `room` rows, whatever it has to do: a choice stands at its place there,
        and those that find no place give nothing."""
        experts = self.moe.num_experts
        slots = torch.where(places < room, chosen * room + places, experts * room).flatten()
        inputs = x.repeat_interleave(chosen.shape[1], dim=0)
        if self.moe.router.on_input:
            inputs = inputs * weights.flatten()[:, None].to(inputs.dtype)
        buffers = x.new_zeros(experts * room + 1, x.shape[-1]).index_copy(0, slots, inputs)
        made = self._made(buffers[:-1].split(room), implementation)
        return self._combined(torch.cat([*made, x.new_zeros(1, x.shape[-1])])[slots], weights)

    def _made(self, copies: Sequence[Tensor], implementation: Implementation) -> list[Tensor]:
        return [self._one(rows, implementation, *own) for rows, *own in zip(copies, *self._each(), strict=True)]

    def _combined(self, made: Tensor, weights: Tensor) -> Tensor:
        """What experts made of each choice [t·k, D], summed by the weights [t, k] to [t, D]."""
        back = made.view(*weights.shape, -1)
        return (back if self.moe.router.on_input else back * weights[..., None].to(back.dtype)).sum(1)

    def rows(self, choices: Tensor) -> list[int]:
        """How many of the choices fell on each expert, and beyond them all. That depends on the data; where there is
        none (meta, llmbench.model.trace) even shares stand in its place."""
        experts = self.moe.num_experts
        if choices.is_meta:
            return even_shares(choices.numel(), experts)
        numbers = torch.arange(experts + self.moe.zero_experts + 1, device=choices.device)
        counts = (choices[:, None] == numbers).sum(0).tolist()
        return [*counts[:experts], sum(counts[experts:])]

    @property
    def held(self) -> ExpertWeights:
        """The weights of all experts."""
        return ExpertWeights(self.gate_proj, self.up_proj, self.down_proj, self.gate_bias, self.up_bias, self.down_bias)

    def _each(self) -> list[Sequence[Any]]:
        """Gate, up and down and their biases, each a list over the experts. Unbound at once, so that backward makes a
        whole gradient once, not once an expert."""
        return [[None] * self.moe.num_experts if of is None else of.unbind(0) for of in self.held]

    def _one(
        self,
        rows: Tensor,
        implementation: Implementation,
        gate: Tensor | None,
        up: Tensor,
        down: Tensor,
        gate_bias: Tensor | None,
        up_bias: Tensor | None,
        down_bias: Tensor | None,
    ) -> Tensor:
        """One expert on rows [r, D]; with no rows it still takes part, so that every weight has a gradient."""
        if gate is None:
            inner = activation(self.moe.activation)(F.linear(rows, up, up_bias))
        else:
            gated = F.linear(rows, gate, gate_bias)
            inner = implementation.glu(gated, F.linear(rows, up, up_bias), self.moe.activation)
        return F.linear(inner, down, down_bias)


def even_shares(choices: int, experts: int) -> list[int]:
    """As many rows for each expert as for any other, within one, and none beyond them."""
    return [choices * (e + 1) // experts - choices * e // experts for e in range(experts)] + [0]


class MixtureLayer(nn.Module):
    """Router, experts, and what every token visits beside them.

    After a forward pass, `last_chosen` [t, k] has the choices of the router. Where the capacity of experts is limited,
    `last_kept` [t, k] says which choices found a place.
    """

    def __init__(self, hidden: int, moe: MoE) -> None:
        super().__init__()
        self.moe = moe
        if moe.router.hidden_size is not None:
            raise UnsupportedError("a router that is a network of its own is sized, not built yet")
        if moe.zero_experts and (moe.capacity_factor is not None or moe.expert_capacity is not None):
            raise UnsupportedError("experts of limited capacity beside some that compute nothing are not built yet")
        self.router = RouterLayer(hidden, moe)
        self.latent_in = self.latent_out = None
        if moe.latent_size is not None:
            self.latent_in = nn.Linear(hidden, moe.latent_size, bias=False)
            self.latent_out = nn.Linear(moe.latent_size, hidden, bias=False)
        self.experts = ExpertsLayer(moe.latent_size or hidden, moe)
        self.shared: nn.Module | None = None
        self.shared_gate: nn.Linear | None = None
        if moe.shared is not None:
            shape: Dense | Gated = (Gated if moe.gated else Dense)(
                intermediate_size=moe.shared.intermediate_size, activation=moe.activation, bias=moe.shared.bias
            )
            self.shared = feed_forward(hidden, shape)
            self.shared_gate = nn.Linear(hidden, 1, bias=False) if moe.shared.gate else None
        self.beside = None if moe.beside is None else feed_forward(hidden, moe.beside)
        self.last_chosen: Tensor | None = None
        self.last_kept: Tensor | None = None

    def forward(self, x: Tensor, implementation: Implementation) -> Tensor:
        """[B, S, D] to [B, S, D]."""
        tokens = x.flatten(0, -2)
        _, weights, chosen = self.router(tokens, implementation)
        self.last_chosen = chosen
        narrow = tokens if self.latent_in is None else self.latent_in(tokens)
        out = self._routed(narrow, weights, chosen, x.shape[0], implementation)
        out = (out if self.latent_out is None else self.latent_out(out)).view_as(x)
        if self.shared is not None:
            shared = self.shared(x, implementation)
            out = out + (shared if self.shared_gate is None else torch.sigmoid(self.shared_gate(x)) * shared)
            if self.moe.shared is not None and self.moe.shared.averaged:
                out = out / 2
        if self.beside is not None:
            out = out + self.beside(x, implementation)
        return out

    def _routed(
        self, tokens: Tensor, weights: Tensor, chosen: Tensor, sequences: int, implementation: Implementation
    ) -> Tensor:
        """What the experts make of tokens [t, D] of so many sequences, as many as they have room for."""
        moe = self.moe
        if moe.capacity_factor is not None:
            room = math.ceil(round(moe.capacity_factor * chosen.numel(), 6) / moe.num_experts)
            places = places_of(chosen[None], moe.num_experts)[0]
        elif moe.expert_capacity is not None:
            room = moe.expert_capacity
            places = places_of(chosen.unflatten(0, (sequences, -1)), moe.num_experts).view_as(chosen)
        else:
            return self.experts(tokens, weights, chosen, implementation)
        self.last_kept = places < room
        if moe.capacity_factor is not None and implementation.experts is None:
            return self.experts.in_buffers(tokens, weights, chosen, places, room, implementation)
        weights = weights.masked_fill(~self.last_kept, 0.0)
        chosen = chosen.masked_fill(~self.last_kept, moe.num_experts)
        return self.experts(tokens, weights, chosen, implementation)


def places_of(chosen: Tensor, num_experts: int) -> Tensor:
    """For each choice [G, t, k], how many before it in its group fell on the same expert: token after token, and of a
    token its first choice first."""
    hits = chosen.flatten(1)[..., None] == torch.arange(num_experts, device=chosen.device)
    return (hits.cumsum(1) * hits).sum(-1).view_as(chosen) - 1


def feed_forward(hidden: int, ffn: FFN) -> nn.Module:
    """The module of a feed-forward."""
    match ffn:
        case Dense():
            return DenseLayer(hidden, ffn)
        case Gated():
            return GatedLayer(hidden, ffn)
        case MoE():
            return MixtureLayer(hidden, ffn)
        case _:
            assert_never(ffn)
