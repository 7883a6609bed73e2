"""The modules between the last layer and the vocabulary: BERT's transform, or a projection to the embedding width.

Dimensions: B batch, S length, D hidden size, W embedding width, V vocabulary size.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from llmbench.model.implementations.interface import Implementation
from llmbench.model.implementations.plain import activation
from llmbench.model.norms import NormLayer
from llmbench.spec.ffn import Activation
from llmbench.spec.model import ModelSpec


class HeadLayer(nn.Module):
    """The head before the vocabulary projection. It computes norm(act(transform(x))), or projection(x).

    BERT's head also owns the bias of the logits.
    """

    def __init__(self, spec: ModelSpec, width: int) -> None:
        super().__init__()
        head = spec.head
        self.transform = self.projection = self.norm = None
        if head.transform is not None:
            self.transform = nn.Linear(spec.hidden_size, width, bias=head.transform_bias)
            self.norm = NormLayer(width, spec.norm)
        else:
            self.projection = nn.Linear(spec.hidden_size, width, bias=False)
        self.bias = nn.Parameter(torch.empty(spec.vocab_size)) if head.bias and head.transform == "bert" else None
        self.activation = _activation(spec)

    @staticmethod
    def needed(spec: ModelSpec, width: int) -> bool:
        """Return whether a model has this head: its spec has a transform, or its embedding width differs from D."""
        return spec.head.transform is not None or width != spec.hidden_size

    def reset_parameters(self) -> None:
        """Set the bias of the logits to zero."""
        if self.bias is not None:
            nn.init.zeros_(self.bias)

    def forward(self, x: Tensor, implementation: Implementation) -> Tensor:
        """Return the input [B, S, W] of the vocabulary projection for x [B, S, D]."""
        if self.projection is not None:
            return self.projection(x)
        assert self.transform is not None
        assert self.norm is not None
        out: Tensor = self.norm(activation(self.activation)(self.transform(x)), implementation)
        return out


def _activation(spec: ModelSpec) -> Activation:
    """Return the activation of the head. BERT uses the activation of its feed-forwards. RoBERTa always uses GELU."""
    ffn = spec.layers[spec.order[0]].ffn
    return ffn.activation if spec.head.transform == "bert" and ffn is not None else "gelu"
