"""Expert parallelism: each rank stores some of the experts, and the tokens travel to the ranks of their experts.

Dimensions: E experts, k experts per token, t tokens of this rank, r rows, D hidden size, R ranks.
"""

from __future__ import annotations

from typing import Any

import msgspec
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Shard, distribute_tensor

from llmbench.errors import UnsupportedError
from llmbench.model.decoder import Decoder
from llmbench.model.ffn import ExpertsLayer, MixtureLayer
from llmbench.model.implementations.interface import ExpertWeights, Implementation

__all__ = ["TravellingExperts", "split_experts"]


class TravellingExperts(ExpertsLayer):
    """The experts of a mixture, divided equally among the ranks of a mesh. Rank 0 has the first E / R experts.

    A forward pass has two exchanges between the ranks: the inputs of the experts, then their outputs. The backward pass
    has the same two exchanges for the gradients. A rank sends t·k·D elements in an exchange on average, those
    for its own experts included.
    """

    def __init__(self, whole: ExpertsLayer, mesh: DeviceMesh) -> None:
        nn.Module.__init__(self)
        ranks = mesh.size()
        self.group = mesh.get_group()
        self.all_experts, self.num_experts = whole.num_experts, whole.num_experts // ranks
        self.moe = msgspec.structs.replace(whole.moe, num_experts=self.num_experts)
        for name, stack in whole.named_parameters():
            split = distribute_tensor(stack.detach(), mesh, [Shard(0)])
            self.register_parameter(name, nn.Parameter(split))
        for name in ("gate_proj", "gate_bias", "up_bias", "down_bias"):
            if getattr(whole, name) is None:
                self.register_parameter(name, None)

    @property
    def weights(self) -> ExpertWeights:
        """The weights of the experts of this rank."""
        local: list[Any] = [stack.to_local() if isinstance(stack, DTensor) else None for stack in super().weights]
        return ExpertWeights(*local)

    def forward(self, x: Tensor, weights: Tensor, chosen: Tensor, implementation: Implementation) -> Tensor:
        """Return the weighted sum [t, D] of the outputs of the selected experts, for tokens x [t, D]."""
        choices = chosen.flatten()
        order = choices.argsort(stable=True)
        inputs = x[order // chosen.shape[1]]
        if self.moe.router.on_input:
            inputs = inputs * weights.flatten()[order, None].to(inputs.dtype)
        sent = torch.bincount(choices, minlength=self.all_experts)
        received = torch.empty_like(sent)
        dist.all_to_all_single(received, sent, group=self.group)
        by_rank = received.view(-1, self.num_experts)  # [R, E / R]: the rows of each of my experts from each rank
        sent_rows, received_rows = sent.view(by_rank.shape).sum(1).tolist(), by_rank.sum(1).tolist()
        rows = exchange(inputs, sent_rows, received_rows, self.group)
        own = torch.arange(self.num_experts, device=x.device).repeat(len(by_rank)).repeat_interleave(received)
        ones = torch.ones_like(own, dtype=weights.dtype)
        outputs = super().forward(rows, ones[:, None], own[:, None], implementation)
        outputs = exchange(outputs, received_rows, sent_rows, self.group)
        return self._combine(outputs[order.argsort()], weights)


class _Exchange(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rows: Tensor, sent: list[int], received: list[int], group: Any) -> Tensor:
        ctx.sent, ctx.received, ctx.group = sent, received, group
        out = rows.new_empty(sum(received), rows.shape[1])
        dist.all_to_all_single(out, rows.contiguous(), received, sent, group=group)
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None, None]:
        return exchange(grads[0], ctx.received, ctx.sent, ctx.group), None, None, None


def exchange(rows: Tensor, sent: list[int], received: list[int], group: Any) -> Tensor:
    """Send the first sent[0] of the rows [r, D] to rank 0, the next sent[1] to rank 1, and so on.

    Returns the rows from rank 0, then those from rank 1, and so on. `received`: their numbers. Gradients travel back.
    """
    out: Tensor = _Exchange.apply(rows, sent, received, group)
    return out


def split_experts(model: Decoder, mesh: DeviceMesh) -> None:
    """Divide the experts of all mixtures among the ranks of the mesh, in place. All ranks must have equal weights.

    Each rank computes its own tokens, so that the gradient of an expert is a sum over the tokens of all ranks.

    Raises UnsupportedError if the model has no mixture, if the experts cannot be divided equally, and for experts with
    a limited capacity or without weights.
    """
    name, ranks = model.spec.name, mesh.size()
    mixtures = [module for module in model.modules() if isinstance(module, MixtureLayer)]
    if not mixtures:
        raise UnsupportedError(f"{name}: expert parallelism needs a mixture of experts")
    for mixture in mixtures:
        moe = mixture.moe
        if moe.num_experts % ranks:
            raise UnsupportedError(f"{name}: {moe.num_experts} experts cannot be divided equally among {ranks} ranks")
        if moe.capacity_factor is not None or moe.expert_capacity is not None or moe.zero_experts:
            raise UnsupportedError(f"{name}: expert parallelism supports no experts with a capacity or without weights")
        mixture.experts = TravellingExperts(mixture.experts, mesh)
