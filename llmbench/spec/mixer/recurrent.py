"""Mixers with a state of fixed size: state-space models, linear attention, gated recurrences, short convolutions."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal, final

from llmbench.spec.base import Fault, Size
from llmbench.spec.faults import divides, not_negative, positive
from llmbench.spec.mixer.cache_row import FixedState
from llmbench.spec.mixer.kind import RecurrentKind


@final
class Mamba(RecurrentKind, frozen=True, tag="mamba"):
    """Selective state space (Mamba-1, arXiv 2312.00752).

    - intermediate_size: width of the state-space branch.
    - state_size: state elements per channel.
    - conv_kernel: taps of the short convolution.
    - time_step_rank: width of the low-rank projection to the time step dt.
    - proj_bias: the input and output projections have biases.
    - inner_norms: norms on dt, B and C. "weighted" norms have weights (Jamba), "plain" norms have none (Falcon-Mamba).
    - norm_eps: epsilon of the inner norms, if it differs from the epsilon of the model's norm.
    """

    intermediate_size: Size
    state_size: Size
    conv_kernel: Size
    time_step_rank: Size
    conv_bias: bool = True
    proj_bias: bool = False
    inner_norms: Literal["none", "plain", "weighted"] = "none"
    norm_eps: float | None = None

    label = "Mamba"
    module_name = "mamba"

    @property
    def fixed_state(self) -> FixedState:
        width = self.intermediate_size
        return FixedState(conv=(self.conv_kernel - 1, width), scan=(width, self.state_size))

    def faults(self) -> Iterator[Fault]:
        yield from not_negative(self, "norm_eps")


@final
class Mamba2(RecurrentKind, frozen=True, tag="mamba2"):
    """State-space duality (Mamba-2, arXiv 2405.21060). The heads of a group share B and C.

    - state_size: state elements per channel.
    - conv_kernel: taps of the short convolution.
    - chunk_size: tokens per chunk of the parallel algorithm.
    - proj_bias: the input and output projections have biases.
    - out_proj_bias: the output projection has a bias, if this differs from proj_bias (Falcon-H1).
    - gated_norm: each group has a norm after the gate.
    - norm_before_gate: the norm of a group stands before the gate instead.
    - time_step_min, time_step_max: limits of the time step (Nemotron-H). None: no upper limit.
    - projection_scales: five factors on the outputs of the input projection: gate, values, B, C and time step
      (Falcon-H1). Empty: no factors.
    """

    num_heads: Size
    head_dim: Size
    state_size: Size
    n_groups: Size
    conv_kernel: Size
    chunk_size: Size = 256
    conv_bias: bool = True
    proj_bias: bool = False
    out_proj_bias: bool | None = None
    gated_norm: bool = True
    norm_before_gate: bool = False
    time_step_min: float = 0.0
    time_step_max: float | None = None
    projection_scales: tuple[float, ...] = ()

    label = "Mamba-2"
    module_name = "mamba"

    @property
    def intermediate_size(self) -> int:
        """Width of the values of all heads together."""
        return self.num_heads * self.head_dim

    @property
    def fixed_state(self) -> FixedState:
        channels = self.intermediate_size + 2 * self.n_groups * self.state_size
        scan = self.num_heads, self.state_size, self.head_dim
        return FixedState(conv=(self.conv_kernel - 1, channels), scan=scan)

    def faults(self) -> Iterator[Fault]:
        yield from divides(self, "n_groups", "num_heads")
        yield from not_negative(self, "time_step_min")
        yield from positive(self, "projection_scales")
        if self.time_step_max is not None and not self.time_step_max > self.time_step_min:
            yield Fault("time_step_max", f"{self.time_step_max} is not above time_step_min {self.time_step_min}")
        if self.projection_scales and len(self.projection_scales) != 5:
            yield Fault("projection_scales", f"needs 5 numbers, not {len(self.projection_scales)}")


@final
class GatedDeltaNet(RecurrentKind, frozen=True, tag="gated_delta_net"):
    """Linear attention with a gated delta rule (arXiv 2412.06464), as in Qwen3-Next.

    - conv_kernel: taps of the short convolution.
    - output_gate: a gate multiplies the output.
    - negative_eigenvalues: the learning rate of the delta rule has the range 0 to 2 instead of 0 to 1 (OLMo hybrid,
      arXiv 2411.12537).
    - norm_eps: epsilon of the norm on heads, if it differs from the epsilon of the model's norm.
    """

    num_key_heads: Size
    num_value_heads: Size
    key_head_dim: Size
    value_head_dim: Size
    conv_kernel: Size
    output_gate: bool = True
    negative_eigenvalues: bool = False
    norm_eps: float | None = None

    label = "gated delta net"
    module_name = "delta_net"

    @property
    def fixed_state(self) -> FixedState:
        keys, values = self.num_key_heads * self.key_head_dim, self.num_value_heads * self.value_head_dim
        scan = self.num_value_heads, self.key_head_dim, self.value_head_dim
        return FixedState(conv=(self.conv_kernel - 1, 2 * keys + values), scan=scan)

    def faults(self) -> Iterator[Fault]:
        yield from divides(self, "num_key_heads", "num_value_heads")
        yield from not_negative(self, "norm_eps")


@final
class KimiDelta(RecurrentKind, frozen=True, tag="kimi_delta"):
    """Kimi delta attention: a delta rule with a decay per channel.

    - conv_kernel: taps of the short convolution.
    - full_rank_gates: the projections to the decay and to the output gate are full matrices (Ling 2.5 and later).
      Otherwise they have low rank.
    """

    num_heads: Size
    head_dim: Size
    conv_kernel: Size
    full_rank_gates: bool = False

    label = "Kimi delta attention"
    module_name = "delta_net"

    @property
    def fixed_state(self) -> FixedState:
        conv = self.conv_kernel - 1, 3 * self.num_heads * self.head_dim
        return FixedState(conv=conv, scan=(self.num_heads, self.head_dim, self.head_dim))


@final
class LightningAttention(RecurrentKind, frozen=True, tag="lightning"):
    """Linear attention with a fixed decay per head and an output gate (MiniMax-Text-01, arXiv 2501.08313).

    - block_size: tokens per block of the parallel algorithm.
    """

    num_attention_heads: Size
    head_dim: Size
    block_size: Size = 256

    label = "lightning attention"
    module_name = "linear_attention"

    @property
    def fixed_state(self) -> FixedState:
        return FixedState(scan=(self.num_attention_heads, self.head_dim, self.head_dim))


@final
class RGLRU(RecurrentKind, frozen=True, tag="rg_lru"):
    """Griffin's recurrent block (arXiv 2402.19427): a branch with a gated linear recurrence, multiplied by a gate
    branch.

    - lru_width: width of both branches.
    - num_heads: blocks of the block-diagonal gate matrices.
    - conv_kernel: taps of the short convolution.
    """

    lru_width: Size
    num_heads: Size
    conv_kernel: Size

    label = "RG-LRU"
    module_name = "recurrent"

    @property
    def fixed_state(self) -> FixedState:
        return FixedState(conv=(self.conv_kernel - 1, self.lru_width), scan=(self.lru_width,))

    def faults(self) -> Iterator[Fault]:
        yield from divides(self, "num_heads", "lru_width")


@final
class ShortConv(RecurrentKind, frozen=True, tag="short_conv"):
    """LFM2's gated short convolution: a projection to three streams, a depthwise convolution and an output
    projection."""

    width: Size
    conv_kernel: Size
    bias: bool = False

    label = "short convolution"
    module_name = "conv"

    @property
    def fixed_state(self) -> FixedState:
        return FixedState(conv=(self.conv_kernel - 1, self.width))


@final
class RWKV(RecurrentKind, frozen=True, tag="rwkv"):
    """RWKV-4's time mixing (arXiv 2305.13048): a gated average of values per channel, with decaying weights.

    Time mixing and the channel mixing after it also read the previous token. The state of the recurrence has a
    numerator, a denominator and the largest exponent per channel.
    """

    width: Size

    label = "RWKV"
    module_name = "rwkv"

    @property
    def fixed_state(self) -> FixedState:
        return FixedState(scan=(3, self.width), stream_tokens=2)
