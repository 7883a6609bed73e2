"""What keeps the load of experts even: losses that training adds, and a correction of the router's choices without a
loss.

E experts, k experts a token, t tokens.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from llmbench.model.ffn import MixtureLayer


def balance_losses(logits: Tensor, chosen: Tensor, num_experts: int) -> tuple[Tensor, Tensor]:
    """The load-balancing loss (Switch, arXiv 2101.03961, equation 4) and the z-loss (ST-MoE, arXiv 2202.08906) of a
    router's logits [t, E] and choices [t, k].

    balance = E · Σ_e (share of choices that fell on e) · (mean probability of e); 1 when even.
    z = mean(log-sum-exp(logits)²).
    """
    share = F.one_hot(chosen, num_experts).float().mean((0, 1))
    probability = logits.softmax(-1).mean(0)
    return num_experts * (share * probability).sum(), logits.logsumexp(-1).square().mean()


def model_balance_losses(model: nn.Module) -> tuple[Tensor, Tensor]:
    """Both losses of the last forward pass, the mean over all layers with experts; zeros where there are none."""
    layers = [layer for layer in model.modules() if isinstance(layer, MixtureLayer)]
    losses = []
    for layer in layers:
        assert layer.last_logits is not None, "no forward pass yet"
        assert layer.last_chosen is not None
        losses.append(torch.stack(balance_losses(layer.last_logits, layer.last_chosen, layer.last_logits.shape[-1])))
    if not losses:
        zero = next(model.parameters()).new_zeros(2, dtype=torch.float32)
        return zero[0], zero[1]
    mean = torch.stack(losses).mean(0)
    return mean[0], mean[1]


@torch.no_grad()
def nudge_corrections(model: nn.Module, *, speed: float = 1e-3) -> None:
    """DeepSeek-V3's balance without a loss (arXiv 2412.19437, section 2.1.2), after each training step: the correction
    of every expert that the last forward pass chose less than its even share goes up by `speed`, of every other down.

    Corrections that are trained parameters (ERNIE) are left to the optimizer.
    """
    for layer in model.modules():
        if not isinstance(layer, MixtureLayer) or layer.moe.router.correction != "buffer":
            continue
        correction = layer.router.correction
        assert correction is not None
        assert layer.last_chosen is not None, "no forward pass yet"
        load = F.one_hot(layer.last_chosen, correction.shape[0]).sum((0, 1)).float()
        correction += speed * torch.sign(load.mean() - load)
