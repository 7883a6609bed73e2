"""The ops of state-space and linear-attention mixers: projections, short convolutions, recurrences and states.

The FLOPs of a recurrence are those of its step-by-step form: three multiply-adds per state element and token (decay,
write and read), with 2 FLOPs each. Chunked kernels compute the same result with other products. In training, a
recurrence saves its inputs and its output. Real kernels also save the states of their chunks. So the training memory of
these models is approximate.
"""

from __future__ import annotations

from typing import assert_never

from llmbench.errors import LayoutError
from llmbench.sizing.dtypes import bytes_of
from llmbench.sizing.lower.builder import Builder, Dim, product, share
from llmbench.sizing.op import Cache
from llmbench.spec.mixer import (
    RGLRU,
    RWKV,
    GatedDeltaNet,
    KimiDelta,
    LightningAttention,
    Mamba,
    Mamba2,
    Recurrent,
    RecurrentKind,
    ShortConv,
)
from llmbench.spec.model import Norm


def recurrent(b: Builder, mixer: Recurrent) -> None:
    """Add the ops of a recurrent mixer. Raises LayoutError if its heads cannot be split over the GPUs."""
    match mixer:
        case Mamba():
            _mamba(b, mixer)
        case Mamba2():
            _mamba2(b, mixer)
        case GatedDeltaNet():
            _gated_delta_net(b, mixer)
        case KimiDelta():
            _kimi_delta(b, mixer)
        case LightningAttention():
            _lightning(b, mixer)
        case RGLRU():
            _rg_lru(b, mixer)
        case RWKV():
            _rwkv(b, mixer)
        case ShortConv():
            _short_conv(b, mixer)
        case _:
            assert_never(mixer)


def _conv(b: Builder, mixer: RecurrentKind, formula: str, *, bias: bool, saves: bool = True) -> None:
    """Add the causal depthwise convolution. It costs one multiply-add per channel, tap and token.

    The state of the convolution stores the newest (number of taps − 1) inputs.

    formula: number of channels, written with spec field names. saves: whether the op saves its input and its result.
    """
    assert mixer.fixed_state.conv is not None
    inputs, channels = mixer.fixed_state.conv
    tp, taps = b.layout.tp, inputs + 1
    local = share(channels, tp)
    parameters = local * (taps + int(bias))
    flops = 2 * b.tokens * local * taps
    state_bytes = bytes_of(b.workload.batch * local * inputs, b.workload.kv_dtype)
    b.add(
        f"{mixer.module_name}.conv",
        "mixer_ssm",
        "conv",
        parameters=parameters,
        active_parameters=parameters,
        shards=tp,
        formula=f"({formula}) × " + ("(conv_kernel + 1)" if bias else "conv_kernel"),
        forward_flops=flops,
        backward_flops=2 * flops,
        weight_bytes=bytes_of(parameters, b.workload.weight_dtype),
        read_bytes=b.act(b.tokens * local),
        written_bytes=b.act(b.tokens * local),
        saved_bytes=b.act(2 * b.tokens * local) if saves else 0,
        kv_read_bytes=state_bytes if b.cached else 0,
        kv_written_bytes=state_bytes if b.workload.phase != "train" else 0,
        cache=Cache(conv_state=local * inputs),
    )


def _scan(
    b: Builder, mixer: RecurrentKind, *, inputs: int, outputs: int, terms: int = 3, saves: int | None = None
) -> None:
    """Add the recurrence.

    inputs, outputs: elements per token. terms: multiply-adds per state element and token.
    saves: elements per token that the op saves. None: its inputs and outputs.
    """
    tp = b.layout.tp
    local = share(mixer.fixed_state.scan_elements, tp)
    flops = 2 * terms * b.tokens * local
    cache = Cache(state=local, state_dtype=mixer.fixed_state.dtype)
    state_bytes = b.workload.batch * cache.state_bytes
    b.add(
        f"{mixer.module_name}.scan",
        "mixer_ssm",
        "scan",
        role="scan",
        forward_flops=flops,
        backward_flops=2 * flops,
        read_bytes=b.act(b.tokens * share(inputs, tp)),
        written_bytes=b.act(b.tokens * share(outputs, tp)),
        saved_bytes=b.act(b.tokens * share(inputs + outputs if saves is None else saves, tp)),
        kv_read_bytes=state_bytes if b.cached else 0,
        kv_written_bytes=state_bytes if b.workload.phase != "train" else 0,
        cache=cache,
    )


def _mamba(b: Builder, m: Mamba) -> None:
    tp = b.layout.tp
    width = Dim(m.intermediate_size, "intermediate_size")
    state = Dim(m.state_size, "state_size")
    rank = Dim(m.time_step_rank, "time_step_rank")
    b.linear(
        f"{m.module_name}.in_proj",
        "mixer_ssm",
        b.hidden,
        product(Dim(2, "2"), width),
        bias=m.proj_bias,
        split="column",
        gathers=True,
    )
    _conv(b, m, width.label, bias=m.conv_bias)
    packed = Dim(m.time_step_rank + 2 * m.state_size, "(time_step_rank + 2 × state_size)")
    b.linear(f"{m.module_name}.x_proj", "mixer_ssm", width, packed, split="row", saves_input=False)
    if m.inner_norms != "none":
        norm = Norm(weight=m.inner_norms == "weighted")
        for name, dim in (("dt_norm", rank), ("b_norm", state), ("c_norm", state)):
            b.norm(f"{m.module_name}.{name}", "mixer_ssm", dim, norm, rows=b.tokens)
    b.linear(f"{m.module_name}.dt_proj", "mixer_ssm", rank, width, bias=True, split="column")
    b.vector(f"{m.module_name}.A_log", "mixer_ssm", product(width, state), shards=tp)
    b.vector(f"{m.module_name}.D", "mixer_ssm", width, shards=tp)
    _scan(b, m, inputs=3 * width.size, outputs=width.size)
    b.linear(f"{m.module_name}.out_proj", "mixer_ssm", width, b.hidden, bias=m.proj_bias, split="row")


def _mamba2(b: Builder, m: Mamba2) -> None:
    """Add the ops of Mamba-2.

    The fused kernel saves the result of the input projection and the result of the scan. Its backward pass computes the
    convolution again (mamba_split_conv1d_scan_combined in mamba_ssm/ops/triton/ssd_combined.py, which Megatron calls).
    """
    tp = b.layout.tp
    if m.num_heads % tp:
        raise LayoutError(f"layout tp={tp}: the {m.num_heads} state-space heads are not divisible by {tp}")
    heads, groups, state = (
        Dim(m.num_heads, "num_heads"),
        Dim(m.n_groups, "n_groups"),
        Dim(m.state_size, "state_size"),
    )
    width = product(heads, Dim(m.head_dim, "head_dim"))
    shared = 2 * m.n_groups * m.state_size
    packed = Dim(2 * width.size + shared + m.num_heads, f"(2 × {width.label} + 2 × n_groups × state_size + num_heads)")
    b.linear(f"{m.module_name}.in_proj", "mixer_ssm", b.hidden, packed, bias=m.proj_bias, split="column", gathers=True)
    _conv(b, m, f"{width.label} + 2 × {groups.label} × {state.label}", bias=m.conv_bias, saves=not b.fused)
    for name in ("A_log", "D", "dt_bias"):
        b.vector(f"{m.module_name}.{name}", "mixer_ssm", heads, shards=tp)
    saves = packed.size + width.size if b.fused else None
    _scan(b, m, inputs=width.size + shared + m.num_heads, outputs=width.size, saves=saves)
    if m.gated_norm:
        b.norm(f"{m.module_name}.norm", "mixer_ssm", width, Norm(), rows=b.tokens, shards=tp)
    out_bias = m.proj_bias if m.out_proj_bias is None else m.out_proj_bias
    b.linear(f"{m.module_name}.out_proj", "mixer_ssm", width, b.hidden, bias=out_bias, split="row")


def _gated_delta_net(b: Builder, m: GatedDeltaNet) -> None:
    tp = b.layout.tp
    keys = product(Dim(m.num_key_heads, "num_key_heads"), Dim(m.key_head_dim, "key_head_dim"))
    value_heads, value_dim = (
        Dim(m.num_value_heads, "num_value_heads"),
        Dim(m.value_head_dim, "value_head_dim"),
    )
    values = product(value_heads, value_dim)
    name = m.module_name
    b.linear(f"{name}.q_proj", "mixer_ssm", b.hidden, keys, split="column", gathers=True)
    b.linear(f"{name}.k_proj", "mixer_ssm", b.hidden, keys, split="column", saves_input=False)
    b.linear(f"{name}.v_proj", "mixer_ssm", b.hidden, values, split="column", saves_input=False)
    if m.output_gate:
        b.linear(f"{name}.g_proj", "mixer_ssm", b.hidden, values, split="column", saves_input=False)
    for gate in ("a_proj", "b_proj"):
        b.linear(f"{name}.{gate}", "mixer_ssm", b.hidden, value_heads, split="column", saves_input=False)
    _conv(b, m, f"2 × {keys.label} + {values.label}", bias=False)
    for vector in ("A_log", "dt_bias"):
        b.vector(f"{name}.{vector}", "mixer_ssm", value_heads, shards=tp)
    _scan(b, m, inputs=2 * keys.size + values.size, outputs=values.size)
    b.norm(f"{name}.norm", "mixer_ssm", value_dim, Norm(), rows=b.tokens * share(m.num_value_heads, tp))
    b.linear(f"{name}.out_proj", "mixer_ssm", values, b.hidden, split="row")


def _kimi_delta(b: Builder, m: KimiDelta) -> None:
    tp = b.layout.tp
    heads, head_dim = Dim(m.num_heads, "num_heads"), Dim(m.head_dim, "head_dim")
    width = product(heads, head_dim)
    name = m.module_name
    for letter in "qkv":
        b.linear(
            f"{name}.{letter}_proj",
            "mixer_ssm",
            b.hidden,
            width,
            split="column",
            saves_input=letter == "q",
            gathers=letter == "q",
        )
    _conv(b, m, product(Dim(3, "3"), width).label, bias=False)
    for gate, full_rank in (("f", m.full_rank_decay), ("g", m.full_rank_gate)):
        if full_rank:
            b.linear(f"{name}.{gate}_proj", "mixer_ssm", b.hidden, width, split="column", saves_input=False)
            continue
        b.linear(f"{name}.{gate}_a_proj", "mixer_ssm", b.hidden, head_dim, saves_input=False)
        b.linear(f"{name}.{gate}_b_proj", "mixer_ssm", head_dim, width, split="column")
    b.linear(f"{name}.b_proj", "mixer_ssm", b.hidden, heads, split="column", saves_input=False)
    b.vector(f"{name}.A_log", "mixer_ssm", heads, shards=tp)
    b.vector(f"{name}.dt_bias", "mixer_ssm", width, shards=tp)
    _scan(b, m, inputs=4 * width.size, outputs=width.size)
    b.norm(f"{name}.norm", "mixer_ssm", head_dim, Norm(), rows=b.tokens * share(m.num_heads, tp))
    b.linear(f"{name}.out_proj", "mixer_ssm", width, b.hidden, split="row")


def _lightning(b: Builder, m: LightningAttention) -> None:
    tp = b.layout.tp
    heads, head_dim = Dim(m.num_attention_heads, "num_attention_heads"), Dim(m.head_dim, "head_dim")
    width = product(heads, head_dim)
    name = m.module_name
    b.linear(f"{name}.qkv_proj", "mixer_ssm", b.hidden, product(Dim(3, "3"), width), split="column", gathers=True)
    b.linear(f"{name}.g_proj", "mixer_ssm", b.hidden, width, split="column", saves_input=False)
    if m.stored_decays:  # per head: its slope, and the decays to the start, to the end and between tokens of a block
        block = m.block_size
        per_head = Dim(1 + 2 * block + block**2, "(1 + 2·block_size + block_size²)")
        b.vector(f"{name}.decays", "mixer_ssm", product(heads, per_head), shards=tp, buffer=True)
    _scan(b, m, inputs=3 * width.size, outputs=width.size)
    b.norm(f"{name}.norm", "mixer_ssm", width, Norm(), rows=b.tokens, shards=tp)
    b.linear(f"{name}.out_proj", "mixer_ssm", width, b.hidden, split="row")


def _rg_lru(b: Builder, m: RGLRU) -> None:
    tp = b.layout.tp
    width, heads = Dim(m.lru_width, "lru_width"), Dim(m.num_heads, "num_heads")
    block = Dim(m.lru_width // m.num_heads, "(lru_width / num_heads)")
    for branch in ("y", "x"):
        b.linear(
            f"recurrent.linear_{branch}",
            "mixer_ssm",
            b.hidden,
            width,
            bias=True,
            split="column",
            saves_input=branch == "y",
            gathers=branch == "y",
        )
    _conv(b, m, width.label, bias=True)
    for gate in ("input_gate", "recurrent_gate"):  # each gate is a block-diagonal matrix with one square block per head
        weights = share(m.num_heads, tp) * block.size * block.size
        flops = 2 * b.tokens * weights
        parameters = weights + share(width.size, tp)
        b.add(
            f"{m.module_name}.{gate}",
            "mixer_ssm",
            "matmul",
            parameters=parameters,
            active_parameters=parameters,
            matmul_elements=weights,
            shards=tp,
            formula=f"{heads.label} × {block.label} × {block.label} + lru_width",
            forward_flops=flops,
            backward_flops=2 * flops,
            weight_bytes=bytes_of(parameters, b.workload.weight_dtype),
            read_bytes=b.act(b.tokens * share(width.size, tp)),
            written_bytes=b.act(b.tokens * share(width.size, tp)),
        )
    b.vector(f"{m.module_name}.recurrent_param", "mixer_ssm", width, shards=tp)
    _scan(b, m, inputs=3 * width.size, outputs=width.size)
    b.linear(f"{m.module_name}.linear_out", "mixer_ssm", width, b.hidden, bias=True, split="row")


def _short_conv(b: Builder, m: ShortConv) -> None:
    width = Dim(m.width, "width")
    b.linear(
        f"{m.module_name}.in_proj",
        "mixer_ssm",
        b.hidden,
        product(Dim(3, "3"), width),
        bias=m.bias,
        split="column",
        gathers=True,
    )
    _conv(b, m, width.label, bias=m.bias)
    b.linear(f"{m.module_name}.out_proj", "mixer_ssm", width, b.hidden, bias=m.bias, split="row")


def _rwkv(b: Builder, m: RWKV) -> None:
    width, tp, name = Dim(m.width, "width"), b.layout.tp, m.module_name
    for mix in ("key", "value", "receptance"):
        b.vector(f"{name}.time_mix_{mix}", "mixer_ssm", b.hidden)
    for vector in ("time_decay", "time_first"):
        b.vector(f"{name}.{vector}", "mixer_ssm", width, shards=tp)
    for letter in "kvr":
        b.linear(f"{name}.{letter}_proj", "mixer_ssm", b.hidden, width, split="column", gathers=letter == "k")
    _scan(b, m, inputs=3 * width.size, outputs=width.size)
    shifted = m.fixed_state.stream_tokens * b.hidden.size
    b.add(f"{name}.shift", "mixer_ssm", "elementwise", cache=Cache(conv_state=shifted))
    b.linear(f"{name}.out_proj", "mixer_ssm", width, b.hidden, split="row")
