"""The state that a recurrent mixer keeps between forward passes, and the short convolution of such a mixer.

Dimensions: B batch, S length, C channels, D hidden size, k taps of the convolution.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from llmbench.model.recurrent.scan import causal_conv
from llmbench.spec.mixer import FixedState


class RecurrentState:
    """The state of one recurrent layer.

    Its size does not depend on the sequence length. Padding does not change the state.

    - `conv` [B, k − 1, C]: the last k − 1 inputs of the convolution. None: the layer has no convolution.
    - `state`: the fp32 state of the recurrence. None: the layer has no recurrence.
    - `stream` [B, n, D]: the last inputs of the n sublayers that also read the previous token. None: there are none.
    """

    def __init__(self, conv: Tensor | None, state: Tensor | None, stream: Tensor | None = None) -> None:
        self.conv = conv
        self.state = state
        self.stream = stream

    def forget(self, row: int) -> None:
        """Set the state of the sequence with the index `row` to zeros, so that another sequence can start there."""
        for part in (self.conv, self.state, self.stream):
            if part is not None:
                part[row].zero_()

    @property
    def nbytes(self) -> int:
        """The bytes of the convolution inputs, of the recurrent state and of the stored inputs."""
        return sum(part.nbytes for part in (self.conv, self.state, self.stream) if part is not None)


def new_state(
    state: FixedState,
    batch: int,
    hidden: int,
    *,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
) -> RecurrentState:
    """Create the state before the first token, which is all zeros.

    - `hidden`: the hidden size of the model.
    """
    tokens = state.stream_tokens
    return RecurrentState(
        None if state.conv is None else torch.zeros(batch, *state.conv, dtype=dtype, device=device),
        None if state.scan is None else torch.zeros(batch, *state.scan, dtype=torch.float32, device=device),
        torch.zeros(batch, tokens, hidden, dtype=dtype, device=device) if tokens else None,
    )


class CausalConv(nn.Module):
    """A causal depthwise convolution over [B, S, C], with weight [C, 1, k]."""

    def __init__(self, channels: int, kernel: int, *, bias: bool) -> None:
        super().__init__()
        self.kernel = kernel
        self.weight = nn.Parameter(torch.empty(channels, 1, kernel))
        self.bias = nn.Parameter(torch.empty(channels)) if bias else None

    def reset_parameters(self) -> None:
        """Draw weights uniformly from −1/√k to 1/√k, and set the bias to zero."""
        bound = self.kernel**-0.5
        with torch.no_grad():
            self.weight.uniform_(-bound, bound)
            if self.bias is not None:
                self.bias.zero_()

    def forward(self, x: Tensor, state: RecurrentState | None, valid: Tensor | None) -> Tensor:
        """Convolve x, [B, S, C] to [B, S, C], and update `state`.

        The inputs in `state` come before x. Afterwards, `state` contains the last k − 1 real inputs.
        """
        taps = self.kernel - 1
        before = x.new_zeros(x.shape[0], taps, x.shape[2])
        if state is not None and state.conv is not None:
            before = state.conv.to(x.dtype)
        both = torch.cat((before, x), dim=1)
        if state is not None and state.conv is not None:
            state.conv = self._last(both, x.shape[1], valid).to(state.conv.dtype)
        return causal_conv(both, self.weight, self.bias)

    def _last(self, both: Tensor, length: int, valid: Tensor | None) -> Tensor:
        """Return the k − 1 inputs that end with the last real token of each row."""
        if valid is None:
            return both[:, length:]
        taps = torch.arange(self.kernel - 1, device=both.device)
        rows = valid.sum(dim=1, keepdim=True) + taps
        return both.gather(1, rows[:, :, None].expand(-1, -1, both.shape[2]))

    def extra_repr(self) -> str:
        return f"{self.weight.shape[0]}, kernel={self.kernel}"
