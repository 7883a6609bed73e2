"""Feed-forward modules: dense, gated and mixtures of experts.

Dimensions: B batch, S length, D hidden size, F intermediate size, E experts, k experts per token, t = B·S tokens.
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
from llmbench.model.norms import NormLayer, times
from llmbench.model.xielu import XIELU
from llmbench.spec.ffn import FFN, Dense, Gated, MoE, Router
from llmbench.spec.model import Norm


class DenseLayer(nn.Module):
    """The dense feed-forward: down(act(up(x)))."""

    def __init__(self, hidden: int, ffn: Dense) -> None:
        super().__init__()
        self.act = XIELU() if ffn.activation_parameters else activation(ffn.activation)
        self.up_proj = nn.Linear(hidden, ffn.intermediate_size, bias=ffn.bias)
        self.down_proj = nn.Linear(ffn.intermediate_size, hidden, bias=ffn.bias)

    def forward(self, x: Tensor, implementation: Implementation) -> Tensor:
        """Return the output [B, S, D] of the feed-forward for x [B, S, D]."""
        return self.down_proj(self.act(self.up_proj(x)))


class GatedLayer(nn.Module):
    """The gated feed-forward: down(act(gate(x)) * up(x)). In BitNet, a norm stands before the down matrix."""

    def __init__(self, hidden: int, ffn: Gated, norm: Norm) -> None:
        super().__init__()
        self.activation = ffn.activation
        self.scales = ffn.gate_scale, ffn.output_scale
        self.gate_proj = nn.Linear(hidden, ffn.intermediate_size, bias=ffn.bias)
        self.up_proj = nn.Linear(hidden, ffn.intermediate_size, bias=ffn.bias)
        self.inner_norm = NormLayer(ffn.intermediate_size, norm) if ffn.inner_norm else None
        self.down_proj = nn.Linear(ffn.intermediate_size, hidden, bias=ffn.bias)

    def forward(self, x: Tensor, implementation: Implementation) -> Tensor:
        """Return the output [B, S, D] of the feed-forward for x [B, S, D]."""
        gate_scale, output_scale = self.scales
        inner = implementation.glu(times(self.gate_proj(x), gate_scale), self.up_proj(x), self.activation)
        inner = inner if self.inner_norm is None else self.inner_norm(inner, implementation)
        return times(self.down_proj(inner), output_scale)


class RouterLayer(nn.Module):
    """The router of a mixture of experts. It scores all experts in fp32, and selects k of them for each token."""

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
        """Score the experts for tokens x [t, D], and select k experts per token.

        Returns the logits [t, E] of all experts, and the weights [t, k] and indices [t, k] of the selected experts.
        """
        logits = F.linear(x.float(), self.weight.float(), None if self.bias is None else self.bias.float())
        return logits, *implementation.route(logits, self.top_k, self.correction, self.router)


class ExpertsLayer(nn.Module):
    """The experts of a mixture. Each kind of weight is one stacked tensor: gate and up [E, F, D], down [E, D, F]."""

    def __init__(self, hidden: int, moe: MoE) -> None:
        super().__init__()
        experts, width = moe.num_experts, moe.intermediate_size
        self.moe = moe
        self.num_experts = experts
        self.gate_proj = nn.Parameter(torch.empty(experts, width, hidden)) if moe.gated else None
        self.up_proj = nn.Parameter(torch.empty(experts, width, hidden))
        self.down_proj = nn.Parameter(torch.empty(experts, hidden, width))
        self.gate_bias = nn.Parameter(torch.empty(experts, width)) if moe.bias and moe.gated else None
        self.up_bias = nn.Parameter(torch.empty(experts, width)) if moe.bias else None
        self.down_bias = nn.Parameter(torch.empty(experts, hidden)) if moe.bias else None

    def forward(self, x: Tensor, weights: Tensor, chosen: Tensor, implementation: Implementation) -> Tensor:
        """Return the weighted sum [t, D] of the outputs of the selected experts, for tokens x [t, D].

        - `weights` [t, k], `chosen` [t, k]: the weights and indices of the selected experts. An index of num_experts or
          more names an expert without weights. The output of this expert is the token itself.

        Each token is copied k times, and the copies are sorted by expert. Each expert computes the outputs of its
        copies. The outputs are then sorted back into the order of the tokens.
        """
        if implementation.experts is not None:
            return implementation.experts(x, weights, chosen, self.weights, self.moe)
        choices = chosen.flatten()
        order = choices.argsort(stable=True)
        inputs = x[order // chosen.shape[1]]
        if self.moe.router.on_input:
            inputs = inputs * weights.flatten()[order, None].to(inputs.dtype)
        *rows, unchanged = inputs.split(self.rows(choices))
        outputs = self._outputs(rows, implementation)
        return self._combine(torch.cat([*outputs, unchanged])[order.argsort()], weights)

    def in_buffers(
        self, x: Tensor, weights: Tensor, chosen: Tensor, places: Tensor, room: int, implementation: Implementation
    ) -> Tensor:
        """Compute the same sum as `forward`, for experts with a limited capacity.

        Each token is copied k times. Each expert has a buffer of `room` rows. An expert computes all rows of its
        buffer, including empty rows.

        - `places` [t, k]: the row of each token copy in the buffer of its expert. A copy whose row is `room` or more
          has no place in the buffer, and adds nothing to the output.
        """
        experts = self.moe.num_experts
        slots = torch.where(places < room, chosen * room + places, experts * room).flatten()
        inputs = x.repeat_interleave(chosen.shape[1], dim=0)
        if self.moe.router.on_input:
            inputs = inputs * weights.flatten()[:, None].to(inputs.dtype)
        buffers = x.new_zeros(experts * room + 1, x.shape[-1]).index_copy(0, slots, inputs)
        outputs = self._outputs(buffers[:-1].split(room), implementation)
        return self._combine(torch.cat([*outputs, x.new_zeros(1, x.shape[-1])])[slots], weights)

    def _outputs(self, rows: Sequence[Tensor], implementation: Implementation) -> list[Tensor]:
        """Return the output of each expert for its own rows [r, D]."""
        pairs = zip(rows, *self._weights_by_expert(), strict=True)
        return [self._expert(own_rows, implementation, *own_weights) for own_rows, *own_weights in pairs]

    def _combine(self, outputs: Tensor, weights: Tensor) -> Tensor:
        """Return the weighted sum [t, D] of the k outputs of each token, from outputs [t·k, D] and weights [t, k]."""
        by_token = outputs.view(*weights.shape, -1)
        return (by_token if self.moe.router.on_input else by_token * weights[..., None].to(by_token.dtype)).sum(1)

    def rows(self, choices: Tensor) -> list[int]:
        """Return the number of rows per expert, followed by the number of rows that no expert computes.

        The router's selection decides these numbers. On meta, tensors have no values, so the result is an equal number
        of rows for each expert. A trace replaces this method by a function that does the same (`model.trace`).
        """
        experts = self.moe.num_experts
        if choices.is_meta:
            return even_shares(choices.numel(), experts)
        numbers = torch.arange(experts + self.moe.zero_experts + 1, device=choices.device)
        counts = (choices[:, None] == numbers).sum(0).tolist()
        return [*counts[:experts], sum(counts[experts:])]

    @property
    def weights(self) -> ExpertWeights:
        """The weights of all experts."""
        return ExpertWeights(self.gate_proj, self.up_proj, self.down_proj, self.gate_bias, self.up_bias, self.down_bias)

    def _weights_by_expert(self) -> list[Sequence[Any]]:
        """Return gate, up, down and their biases, each as a list with one tensor per expert.

        One `unbind` splits each stack. The backward pass then creates one gradient per stack, not one per expert.
        """
        return [[None] * self.moe.num_experts if stack is None else stack.unbind(0) for stack in self.weights]

    def _expert(
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
        """Return the output of one expert for rows [r, D].

        The expert also runs if it has no rows (r = 0), so that every weight gets a gradient.
        """
        if gate is None:
            inner = activation(self.moe.activation)(F.linear(rows, up, up_bias))
        else:
            gate_rows = F.linear(rows, gate, gate_bias)
            inner = implementation.glu(gate_rows, F.linear(rows, up, up_bias), self.moe.activation)
        return F.linear(inner, down, down_bias)


def even_shares(choices: int, experts: int) -> list[int]:
    """Return the number of rows per expert if all experts get the same share, followed by a 0.

    Shares differ by at most one row. The 0 stands for the rows that no expert computes.
    """
    return [choices * (e + 1) // experts - choices * e // experts for e in range(experts)] + [0]


class MixtureLayer(nn.Module):
    """A mixture of experts: a router, experts, and the feed-forwards that process every token.

    - `last_chosen` [t, k]: the indices that the router selected in the last forward pass.
    - `last_kept` [t, k]: true for each selection that its expert had room for. None if the capacity is not limited.
    """

    def __init__(self, hidden: int, moe: MoE, norm: Norm = Norm()) -> None:
        super().__init__()
        self.moe = moe
        if moe.router.hidden_size is not None:
            raise UnsupportedError(
                "a router with a hidden layer (router.hidden_size) is not implemented in the PyTorch model yet"
            )
        if moe.separate_norms and type(self) is MixtureLayer:
            raise UnsupportedError("separate_norms is implemented only for layers with placement `sandwich`")
        if moe.zero_experts and (moe.capacity_factor is not None or moe.expert_capacity is not None):
            raise UnsupportedError(
                "capacity_factor or expert_capacity with zero_experts is not implemented in the PyTorch model yet"
            )
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
            self.shared = feed_forward(hidden, shape, norm)
            self.shared_gate = nn.Linear(hidden, 1, bias=False) if moe.shared.gate else None
        self.beside = None if moe.beside is None else feed_forward(hidden, moe.beside, norm)
        self.output_bias = nn.Parameter(torch.empty(hidden)) if moe.output_bias else None
        self.output_norm = NormLayer(hidden, norm) if moe.output_norm else None
        self.last_chosen: Tensor | None = None
        self.last_kept: Tensor | None = None

    def forward(self, x: Tensor, implementation: Implementation) -> Tensor:
        """Return the output [B, S, D] of the mixture for x [B, S, D]."""
        tokens = x.flatten(0, -2)
        _, weights, chosen = self.router(tokens, implementation)
        self.last_chosen = chosen
        inputs = tokens if self.latent_in is None else self.latent_in(tokens)
        out = self._routed(inputs, weights, chosen, x.shape[0], implementation)
        out = (out if self.latent_out is None else self.latent_out(out)).view_as(x)
        if self.shared is not None:
            shared = self.shared(x, implementation)
            out = out + (shared if self.shared_gate is None else torch.sigmoid(self.shared_gate(x)) * shared)
            if self.moe.shared is not None and self.moe.shared.averaged:
                out = out / 2
        if self.beside is not None:
            out = out + self.beside(x, implementation)
        if self.output_bias is not None:
            out = out + self.output_bias
        return out if self.output_norm is None else self.output_norm(out, implementation)

    def _routed(
        self, tokens: Tensor, weights: Tensor, chosen: Tensor, sequences: int, implementation: Implementation
    ) -> Tensor:
        """Return the output of the experts for tokens [t, D], which belong to `sequences` sequences.

        An expert whose capacity is used up drops the token.
        """
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
    """Return, for each selection [G, t, k], the number of earlier selections of the same expert in its group.

    The order goes from the first to the last token, and from the first to the last selection of a token.
    """
    hits = chosen.flatten(1)[..., None] == torch.arange(num_experts, device=chosen.device)
    return (hits.cumsum(1) * hits).sum(-1).view_as(chosen) - 1


def feed_forward(hidden: int, ffn: FFN, norm: Norm = Norm()) -> nn.Module:
    """Build the module of a feed-forward.

    - `norm`: the norm of the model, for feed-forwards that contain a norm (BitNet, A.X K1).
    """
    match ffn:
        case Dense():
            if ffn.channel_mixing:
                raise UnsupportedError("channel_mixing is implemented in the PyTorch model only in layers of RWKV")
            return DenseLayer(hidden, ffn)
        case Gated():
            return GatedLayer(hidden, ffn, norm)
        case MoE():
            return MixtureLayer(hidden, ffn, norm)
        case _:
            assert_never(ffn)
