"""State-space and linear mixers as ops: their projections, short convolutions, recurrences and fixed states.

A recurrence is counted as its step form: a multiply-add of every state element for each of decay, write and read,
2 FLOPs each. Chunked kernels do other products for the same result. What training saves of a recurrence is its
inputs and output; kernels that keep chunk states save more, so memory of training hybrids is approximate.
"""

from __future__ import annotations

from llmbench.errors import LayoutError
from llmbench.sizing.dtypes import STATE_BYTES, bytes_of
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
    ShortConv,
)
from llmbench.spec.model import Norm


def recurrent(b: Builder, mixer: Recurrent) -> None:
    """Any mixer with a fixed state."""
    if isinstance(mixer, Mamba):
        _mamba(b, mixer)
    elif isinstance(mixer, Mamba2):
        _mamba2(b, mixer)
    elif isinstance(mixer, GatedDeltaNet):
        _gated_delta_net(b, mixer)
    elif isinstance(mixer, KimiDelta):
        _kimi_delta(b, mixer)
    elif isinstance(mixer, LightningAttention):
        _lightning(b, mixer)
    elif isinstance(mixer, RGLRU):
        _rg_lru(b, mixer)
    elif isinstance(mixer, RWKV):
        _rwkv(b, mixer)
    else:
        _short_conv(b, mixer)


def _conv(b: Builder, name: str, channels: Dim, kernel: int, *, bias: bool) -> None:
    """A causal depthwise convolution: a multiply-add per channel and tap; its state is the last kernel - 1 inputs."""
    tp = b.layout.tp
    local = share(channels.size, tp)
    parameters = local * (kernel + int(bias))
    flops = 2 * b.tokens * local * kernel
    held = bytes_of(b.workload.batch * local * (kernel - 1), b.workload.kv_dtype)
    b.add(
        name,
        "mixer_ssm",
        "conv",
        parameters=parameters,
        active_parameters=parameters,
        shards=tp,
        formula=f"({channels.label}) × " + ("(conv_kernel + 1)" if bias else "conv_kernel"),
        forward_flops=flops,
        backward_flops=2 * flops,
        read_bytes=b.act(b.tokens * local),
        written_bytes=b.act(b.tokens * local),
        saved_bytes=b.act(2 * b.tokens * local),
        kv_read_bytes=held if b.workload.phase == "decode" else 0,
        kv_written_bytes=held if b.workload.phase != "train" else 0,
        cache=Cache(conv_state=local * (kernel - 1)),
    )


def _scan(b: Builder, name: str, state: int, *, inputs: int, outputs: int, terms: int = 3) -> None:
    """The recurrence itself over a state of so many elements (whole model); inputs and outputs are widths a token."""
    tp = b.layout.tp
    local = share(state, tp)
    flops = 2 * terms * b.tokens * local
    held = STATE_BYTES * b.workload.batch * local
    b.add(
        name,
        "mixer_ssm",
        "scan",
        forward_flops=flops,
        backward_flops=2 * flops,
        read_bytes=b.act(b.tokens * share(inputs, tp)),
        written_bytes=b.act(b.tokens * share(outputs, tp)),
        saved_bytes=b.act(b.tokens * share(inputs + outputs, tp)),
        kv_read_bytes=held if b.workload.phase == "decode" else 0,
        kv_written_bytes=held if b.workload.phase != "train" else 0,
        cache=Cache(state=local),
    )


def _mamba(b: Builder, m: Mamba) -> None:
    tp = b.layout.tp
    width = Dim(m.intermediate_size, "intermediate_size")
    state = Dim(m.state_size, "state_size")
    rank = Dim(m.time_step_rank, "time_step_rank")
    b.linear(
        "mamba.in_proj",
        "mixer_ssm",
        b.hidden,
        product(Dim(2, "2"), width),
        bias=m.proj_bias,
        split="column",
        gathers=True,
    )
    _conv(b, "mamba.conv", width, m.conv_kernel, bias=m.conv_bias)
    packed = Dim(m.time_step_rank + 2 * m.state_size, "(time_step_rank + 2 × state_size)")
    b.linear("mamba.x_proj", "mixer_ssm", width, packed, split="row", saves_input=False)
    if m.inner_norms != "none":
        norm = Norm(weight=m.inner_norms == "weighted")
        for name, dim in (("dt_norm", rank), ("b_norm", state), ("c_norm", state)):
            b.norm(f"mamba.{name}", "mixer_ssm", dim, norm, rows=b.tokens)
    b.linear("mamba.dt_proj", "mixer_ssm", rank, width, bias=True, split="column")
    b.vector("mamba.A_log", "mixer_ssm", product(width, state), shards=tp)
    b.vector("mamba.D", "mixer_ssm", width, shards=tp)
    _scan(b, "mamba.scan", width.size * state.size, inputs=3 * width.size, outputs=width.size)
    b.linear("mamba.out_proj", "mixer_ssm", width, b.hidden, bias=m.proj_bias, split="row")


def _mamba2(b: Builder, m: Mamba2) -> None:
    tp = b.layout.tp
    if m.num_heads % tp:
        raise LayoutError(f"layout tp={tp}: does not divide {m.num_heads} state-space heads")
    heads, groups, state = (
        Dim(m.num_heads, "num_heads"),
        Dim(m.n_groups, "n_groups"),
        Dim(m.state_size, "state_size"),
    )
    width = product(heads, Dim(m.head_dim, "head_dim"))
    shared = 2 * m.n_groups * m.state_size
    channels = Dim(width.size + shared, f"{width.label} + 2 × {groups.label} × {state.label}")
    packed = Dim(2 * width.size + shared + m.num_heads, f"(2 × {width.label} + 2 × n_groups × state_size + num_heads)")
    b.linear("mamba.in_proj", "mixer_ssm", b.hidden, packed, bias=m.proj_bias, split="column", gathers=True)
    _conv(b, "mamba.conv", channels, m.conv_kernel, bias=m.conv_bias)
    for name in ("A_log", "D", "dt_bias"):
        b.vector(f"mamba.{name}", "mixer_ssm", heads, shards=tp)
    _scan(b, "mamba.scan", width.size * m.state_size, inputs=channels.size + m.num_heads, outputs=width.size)
    if m.gated_norm:
        b.norm("mamba.norm", "mixer_ssm", width, Norm(), rows=b.tokens, shards=tp)
    out_bias = m.proj_bias if m.out_proj_bias is None else m.out_proj_bias
    b.linear("mamba.out_proj", "mixer_ssm", width, b.hidden, bias=out_bias, split="row")


def _gated_delta_net(b: Builder, m: GatedDeltaNet) -> None:
    tp = b.layout.tp
    keys = product(Dim(m.num_key_heads, "num_key_heads"), Dim(m.key_head_dim, "key_head_dim"))
    value_heads, value_dim = (
        Dim(m.num_value_heads, "num_value_heads"),
        Dim(m.value_head_dim, "value_head_dim"),
    )
    values = product(value_heads, value_dim)
    name = "delta_net"
    b.linear(f"{name}.q_proj", "mixer_ssm", b.hidden, keys, split="column", gathers=True)
    b.linear(f"{name}.k_proj", "mixer_ssm", b.hidden, keys, split="column", saves_input=False)
    b.linear(f"{name}.v_proj", "mixer_ssm", b.hidden, values, split="column", saves_input=False)
    if m.output_gate:
        b.linear(f"{name}.g_proj", "mixer_ssm", b.hidden, values, split="column", saves_input=False)
    for gate in ("a_proj", "b_proj"):
        b.linear(f"{name}.{gate}", "mixer_ssm", b.hidden, value_heads, split="column", saves_input=False)
    channels = Dim(2 * keys.size + values.size, f"2 × {keys.label} + {values.label}")
    _conv(b, f"{name}.conv", channels, m.conv_kernel, bias=False)
    for vector in ("A_log", "dt_bias"):
        b.vector(f"{name}.{vector}", "mixer_ssm", value_heads, shards=tp)
    state = m.num_value_heads * m.key_head_dim * m.value_head_dim
    _scan(b, f"{name}.scan", state, inputs=channels.size, outputs=values.size)
    b.norm(f"{name}.norm", "mixer_ssm", value_dim, Norm(), rows=b.tokens * share(m.num_value_heads, tp))
    b.linear(f"{name}.out_proj", "mixer_ssm", values, b.hidden, split="row")


def _kimi_delta(b: Builder, m: KimiDelta) -> None:
    tp = b.layout.tp
    heads, head_dim = Dim(m.num_heads, "num_heads"), Dim(m.head_dim, "head_dim")
    width = product(heads, head_dim)
    name = "delta_net"
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
    _conv(b, f"{name}.conv", product(Dim(3, "3"), width), m.conv_kernel, bias=False)
    for gate in "fg":
        if m.full_rank_gates:
            b.linear(f"{name}.{gate}_proj", "mixer_ssm", b.hidden, width, split="column", saves_input=False)
            continue
        b.linear(f"{name}.{gate}_a_proj", "mixer_ssm", b.hidden, head_dim, saves_input=False)
        b.linear(f"{name}.{gate}_b_proj", "mixer_ssm", head_dim, width, split="column")
    b.linear(f"{name}.b_proj", "mixer_ssm", b.hidden, heads, split="column", saves_input=False)
    b.vector(f"{name}.A_log", "mixer_ssm", heads, shards=tp)
    b.vector(f"{name}.dt_bias", "mixer_ssm", width, shards=tp)
    _scan(b, f"{name}.scan", width.size * m.head_dim, inputs=4 * width.size, outputs=width.size)
    b.norm(f"{name}.norm", "mixer_ssm", head_dim, Norm(), rows=b.tokens * share(m.num_heads, tp))
    b.linear(f"{name}.out_proj", "mixer_ssm", width, b.hidden, split="row")


def _lightning(b: Builder, m: LightningAttention) -> None:
    tp = b.layout.tp
    heads, head_dim = Dim(m.num_attention_heads, "num_attention_heads"), Dim(m.head_dim, "head_dim")
    width = product(heads, head_dim)
    name = "linear_attention"
    b.linear(f"{name}.qkv_proj", "mixer_ssm", b.hidden, product(Dim(3, "3"), width), split="column", gathers=True)
    b.linear(f"{name}.g_proj", "mixer_ssm", b.hidden, width, split="column", saves_input=False)
    _scan(b, f"{name}.scan", width.size * m.head_dim, inputs=3 * width.size, outputs=width.size)
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
    _conv(b, "recurrent.conv", width, m.conv_kernel, bias=True)
    for gate in ("input_gate", "recurrent_gate"):  # block-diagonal: every head its own square matrix
        weights = share(m.num_heads, tp) * block.size * block.size
        flops = 2 * b.tokens * weights
        parameters = weights + share(width.size, tp)
        b.add(
            f"recurrent.{gate}",
            "mixer_ssm",
            "matmul",
            parameters=parameters,
            active_parameters=parameters,
            matmul_elements=weights,
            shards=tp,
            formula=f"{heads.label} × {block.label} × {block.label} + lru_width",
            forward_flops=flops,
            backward_flops=2 * flops,
            read_bytes=b.act(b.tokens * share(width.size, tp)),
            written_bytes=b.act(b.tokens * share(width.size, tp)),
        )
    b.vector("recurrent.recurrent_param", "mixer_ssm", width, shards=tp)
    _scan(b, "recurrent.scan", width.size, inputs=3 * width.size, outputs=width.size)
    b.linear("recurrent.linear_out", "mixer_ssm", width, b.hidden, bias=True, split="row")


def _short_conv(b: Builder, m: ShortConv) -> None:
    width = Dim(m.width, "width")
    b.linear(
        "conv.in_proj",
        "mixer_ssm",
        b.hidden,
        product(Dim(3, "3"), width),
        bias=m.bias,
        split="column",
        gathers=True,
    )
    _conv(b, "conv.conv", width, m.conv_kernel, bias=m.bias)
    b.linear("conv.out_proj", "mixer_ssm", width, b.hidden, bias=m.bias, split="row")


def _rwkv(b: Builder, m: RWKV) -> None:
    """Kept between steps: numerator, denominator and largest exponent a channel, and a token for each of two
    mixings."""
    width, tp, name = Dim(m.width, "width"), b.layout.tp, "rwkv"
    for mix in ("key", "value", "receptance"):
        b.vector(f"{name}.time_mix_{mix}", "mixer_ssm", b.hidden)
    for vector in ("time_decay", "time_first"):
        b.vector(f"{name}.{vector}", "mixer_ssm", width, shards=tp)
    for letter in "kvr":
        b.linear(f"{name}.{letter}_proj", "mixer_ssm", b.hidden, width, split="column", gathers=letter == "k")
    _scan(b, f"{name}.scan", 3 * width.size, inputs=3 * width.size, outputs=width.size)
    b.add(f"{name}.shift", "mixer_ssm", "elementwise", cache=Cache(conv_state=2 * b.hidden.size))
    b.linear(f"{name}.out_proj", "mixer_ssm", width, b.hidden, split="row")
