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
    """The selective state-space mixer of Mamba-1 (arXiv 2312.00752).

    - intermediate_size: number of channels of the state-space branch.
    - state_size: number of state elements per channel.
    - conv_kernel: number of taps of the short convolution.
    - time_step_rank: width of the low-rank projection to the time step dt.
    - conv_bias: whether the short convolution has a bias.
    - proj_bias: whether the input and output projections have biases.
    - inner_norms: norms on dt, B and C. "weighted" norms have trained weights (Jamba). "plain" norms have no weights
      (Falcon-Mamba).
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
    """The state-space mixer of Mamba-2 (arXiv 2405.21060). All heads of a group share the vectors B and C.

    - num_heads: number of heads.
    - head_dim: width of a head.
    - state_size: number of state elements per channel.
    - n_groups: number of groups of heads.
    - conv_kernel: number of taps of the short convolution.
    - chunk_size: number of tokens per chunk of the parallel algorithm.
    - conv_bias: whether the short convolution has a bias.
    - proj_bias: whether the input and output projections have biases.
    - out_proj_bias: whether the output projection has a bias, if this differs from proj_bias (Falcon-H1).
    - gated_norm: whether the output of each group has a norm after the gate.
    - norm_before_gate: whether this norm stands before the gate instead.
    - time_step_min, time_step_max: limits of the time step (Nemotron-H). None: there is no upper limit.
    - projection_scales: five factors on the five outputs of the input projection: gate, values, B, C and time step
      (Falcon-H1). Empty: no factors.
    - state_dtype: number format of the state that the config asks for. Absent: each engine has its own rule.
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
    state_dtype: Literal["fp32", "bf16", "fp16"] | None = None

    label = "Mamba-2"
    module_name = "mamba"

    @property
    def intermediate_size(self) -> int:
        """The width of the values of all heads together."""
        return self.num_heads * self.head_dim

    @property
    def fixed_state(self) -> FixedState:
        channels = self.intermediate_size + 2 * self.n_groups * self.state_size
        scan = self.num_heads, self.state_size, self.head_dim
        return FixedState(conv=(self.conv_kernel - 1, channels), scan=scan, dtype=self.state_dtype)

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
    """Linear attention with a gated delta rule (arXiv 2412.06464). Qwen3-Next uses it.

    - num_key_heads: number of query heads and of key heads.
    - num_value_heads: number of value heads.
    - key_head_dim: width of a query head and of a key head.
    - value_head_dim: width of a value head.
    - conv_kernel: number of taps of the short convolution.
    - output_gate: whether a gate multiplies the output.
    - negative_eigenvalues: whether the learning rate of the delta rule ranges from 0 to 2 (OLMo hybrid, arXiv
      2411.12537). If false, it ranges from 0 to 1.
    - norm_eps: epsilon of the norm on the heads, if it differs from the epsilon of the model's norm.
    - state_dtype: number format of the state that the config asks for. Absent: each engine has its own rule.
    """

    num_key_heads: Size
    num_value_heads: Size
    key_head_dim: Size
    value_head_dim: Size
    conv_kernel: Size
    output_gate: bool = True
    negative_eigenvalues: bool = False
    norm_eps: float | None = None
    state_dtype: Literal["fp32", "bf16", "fp16"] | None = None

    label = "gated delta net"
    module_name = "delta_net"

    @property
    def fixed_state(self) -> FixedState:
        keys, values = self.num_key_heads * self.key_head_dim, self.num_value_heads * self.value_head_dim
        scan = self.num_value_heads, self.key_head_dim, self.value_head_dim
        return FixedState(conv=(self.conv_kernel - 1, 2 * keys + values), scan=scan, dtype=self.state_dtype)

    def faults(self) -> Iterator[Fault]:
        yield from divides(self, "num_key_heads", "num_value_heads")
        yield from not_negative(self, "norm_eps")


@final
class KimiDelta(RecurrentKind, frozen=True, tag="kimi_delta"):
    """Kimi delta attention: linear attention with a delta rule that has one decay per channel.

    - num_heads: number of heads.
    - head_dim: width of a query, key or value head.
    - conv_kernel: number of taps of the short convolution.
    - full_rank_decay: whether the projection to the decay is one full matrix (Ling 2.5 and later). If false, it is the
      product of two low-rank matrices.
    - full_rank_gate: the same for the projection to the output gate (also Kimi-K3).
    """

    num_heads: Size
    head_dim: Size
    conv_kernel: Size
    full_rank_decay: bool = False
    full_rank_gate: bool = False

    label = "Kimi delta attention"
    module_name = "delta_net"

    @property
    def fixed_state(self) -> FixedState:
        conv = self.conv_kernel - 1, 3 * self.num_heads * self.head_dim
        # vLLM and flash-linear-attention store this state in fp32 for every model
        return FixedState(conv=conv, scan=(self.num_heads, self.head_dim, self.head_dim), dtype="fp32")


@final
class LightningAttention(RecurrentKind, frozen=True, tag="lightning"):
    """Linear attention with a fixed decay per head and an output gate (MiniMax-Text-01, arXiv 2501.08313).

    - num_attention_heads: number of heads.
    - head_dim: width of a head.
    - block_size: number of tokens per block of the parallel algorithm.
    - stored_decays: whether the files have the decays of a block as buffers (MiniMax in transformers).
    """

    num_attention_heads: Size
    head_dim: Size
    block_size: Size = 256
    stored_decays: bool = False

    label = "lightning attention"
    module_name = "linear_attention"

    @property
    def fixed_state(self) -> FixedState:
        return FixedState(scan=(self.num_attention_heads, self.head_dim, self.head_dim))


@final
class RGLRU(RecurrentKind, frozen=True, tag="rg_lru"):
    """The recurrent mixer of Griffin (arXiv 2402.19427). A gated linear recurrence is multiplied with a gate branch.

    - lru_width: number of channels of the recurrence and of the gate branch.
    - num_heads: number of square blocks in each block-diagonal gate matrix.
    - conv_kernel: number of taps of the short convolution.
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
    """LFM2's gated short convolution.

    The mixer consists of a projection to three tensors of width `width`, a depthwise convolution and an output
    projection.

    - width: number of channels of the convolution.
    - conv_kernel: number of taps of the convolution.
    - bias: whether the projections and the convolution have biases.
    """

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
    """RWKV-4's time mixing (arXiv 2305.13048): a gated average of past values per channel, with decaying weights.

    Time mixing and the channel mixing after it also read the previous token. The state of the recurrence has three
    numbers per channel: a numerator, a denominator and the largest exponent.

    - width: number of channels.
    """

    width: Size

    label = "RWKV"
    module_name = "rwkv"

    @property
    def fixed_state(self) -> FixedState:
        return FixedState(scan=(3, self.width), stream_tokens=2)
