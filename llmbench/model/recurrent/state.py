"""What a recurrent mixer keeps between steps, and its short convolution.

B batch, S length, C channels, k taps of the convolution.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from llmbench.model.recurrent.scan import causal_conv
from llmbench.spec.mixer import (
    RGLRU,
    GatedDeltaNet,
    LightningAttention,
    Mamba,
    Mamba2,
    ShortConv,
)

Built = Mamba | Mamba2 | GatedDeltaNet | LightningAttention | RGLRU | ShortConv


class RecurrentState:
    """The last k − 1 inputs of the convolution [B, k − 1, C], and the recurrence's state, fp32; either may be absent.

    Nothing here grows with length. Padding changes neither.
    """

    def __init__(self, conv: Tensor | None, state: Tensor | None) -> None:
        self.conv = conv
        self.state = state

    def forget(self, row: int) -> None:
        """Put one sequence's state back to zeros, for another to start there."""
        for held in (self.conv, self.state):
            if held is not None:
                held[row].zero_()

    @property
    def nbytes(self) -> int:
        """Bytes of what is held."""
        return sum(held.nbytes for held in (self.conv, self.state) if held is not None)


def new_state(
    mixer: Built, batch: int, *, dtype: torch.dtype = torch.float32, device: torch.device | str = "cpu"
) -> RecurrentState:
    """The state before the first token: zeros."""
    conv, state = _shapes(mixer)
    return RecurrentState(
        None if conv is None else torch.zeros(batch, *conv, dtype=dtype, device=device),
        None if state is None else torch.zeros(batch, *state, dtype=torch.float32, device=device),
    )


def _shapes(mixer: Built) -> tuple[tuple[int, int] | None, tuple[int, ...] | None]:
    """Of the convolution's inputs and of the state, a sequence."""
    if isinstance(mixer, Mamba):
        return (mixer.conv_kernel - 1, mixer.intermediate_size), (mixer.intermediate_size, mixer.state_size)
    if isinstance(mixer, Mamba2):
        channels = mixer.intermediate_size + 2 * mixer.n_groups * mixer.state_size
        return (mixer.conv_kernel - 1, channels), (mixer.num_heads, mixer.state_size, mixer.head_dim)
    if isinstance(mixer, GatedDeltaNet):
        keys, values = mixer.num_key_heads * mixer.key_head_dim, mixer.num_value_heads * mixer.value_head_dim
        state = (mixer.num_value_heads, mixer.key_head_dim, mixer.value_head_dim)
        return (mixer.conv_kernel - 1, 2 * keys + values), state
    if isinstance(mixer, LightningAttention):
        return None, (mixer.num_attention_heads, mixer.head_dim, mixer.head_dim)
    if isinstance(mixer, RGLRU):
        return (mixer.conv_kernel - 1, mixer.lru_width), (mixer.lru_width,)
    return (mixer.conv_kernel - 1, mixer.width), None


class CausalConv(nn.Module):
    """A causal depthwise convolution over [B, S, C]; weight [C, 1, k]."""

    def __init__(self, channels: int, kernel: int, *, bias: bool) -> None:
        super().__init__()
        self.kernel = kernel
        self.weight = nn.Parameter(torch.empty(channels, 1, kernel))
        self.bias = nn.Parameter(torch.empty(channels)) if bias else None

    def reset_parameters(self) -> None:
        """Uniform within ±1/√k, no bias."""
        bound = self.kernel**-0.5
        with torch.no_grad():
            self.weight.uniform_(-bound, bound)
            if self.bias is not None:
                self.bias.zero_()

    def forward(self, x: Tensor, state: RecurrentState | None, valid: Tensor | None) -> Tensor:
        """[B, S, C] to [B, S, C], after the inputs that `state` holds; the last real ones are put there."""
        taps = self.kernel - 1
        before = x.new_zeros(x.shape[0], taps, x.shape[2])
        if state is not None and state.conv is not None:
            before = state.conv.to(x.dtype)
        both = torch.cat((before, x), dim=1)
        if state is not None and state.conv is not None:
            state.conv = self._last(both, x.shape[1], valid).to(state.conv.dtype)
        return causal_conv(both, self.weight, self.bias)

    def _last(self, both: Tensor, length: int, valid: Tensor | None) -> Tensor:
        """The k − 1 inputs up to the last real token of each row."""
        if valid is None:
            return both[:, length:]
        taps = torch.arange(self.kernel - 1, device=both.device)
        rows = valid.sum(dim=1, keepdim=True) + taps
        return both.gather(1, rows[:, :, None].expand(-1, -1, both.shape[2]))

    def extra_repr(self) -> str:
        return f"{self.weight.shape[0]}, kernel={self.kernel}"
