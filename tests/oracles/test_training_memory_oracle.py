"""The training-memory oracle against counts by hand, torch's MemTracker and real steps."""

import functools
import gc

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.distributed._tools.mem_tracker import MemTracker
from torch.profiler import ProfilerActivity, profile

from .training_memory import CudaBehaviour, StorageTracker, Trace, saved_for_backward, trace
from .training_transformer import Dims, Optimizer, Setup, build, loss_of, run_step

TINY = Dims(vocab=96, hidden=32, layers=3, heads=4, kv_heads=2, head_dim=8, intermediate=80)
TINY_GPT2 = Dims(vocab=96, hidden=32, layers=3, heads=4, kv_heads=4, head_dim=8, intermediate=128, tied=True)
LLAMA2_7B = Dims(vocab=32000, hidden=4096, layers=32, heads=32, kv_heads=32, head_dim=128, intermediate=11008)
SETUPS = [
    Setup(style=style, attention=attention, recompute=recompute, precision=precision)
    for style in ("llama", "gpt2")
    for attention in ("flash", "standard")
    for recompute in ("none", "full")
    for precision in ("fp32", "bf16")
]


def dims_of(setup):
    """The tiny model of the setup's style."""
    return TINY if setup.style == "llama" else TINY_GPT2


def name_of(setup):
    """A test id."""
    return f"{setup.style}-{setup.attention}-{setup.recompute}-{setup.precision}"


BATCH, SEQ = 2, 24


@functools.cache
def traced(setup: Setup) -> Trace:
    """The tiny model of a setup, traced once for all tests."""
    return trace(dims_of(setup), setup, batch=BATCH, seq=SEQ)


def test_one_linear_by_hand():
    """y = x W^T; loss = mean(y); every byte of forward and backward counted by hand."""
    tracker = StorageTracker()
    with FakeTensorMode():
        linear, x = nn.Linear(6, 10, bias=False), torch.empty(4, 6)
        tracker.add(linear.weight, "parameters")
        tracker.add(x, "inputs")
        assert tracker.total == 4 * (60 + 24)
        with tracker:
            tracker.enter("forward")
            loss = linear(x).sum()
            assert tracker.total == 4 * (60 + 24 + 1)  # sum keeps no input: y is gone
            assert tracker.phase_peak["forward"] == 4 * (60 + 24 + 40 + 1)
            tracker.enter("backward")
            loss.backward()
            assert linear.weight.grad is not None
            assert tracker.total == 4 * (60 + 24 + 1 + 60)  # the loss is still allocated
            # d loss, then a view of it as dy, materialised (4, 10) when W^T's gradient wants a matrix
            assert tracker.phase_peak["backward"] <= 4 * (60 + 24 + 1 + 1 + 40 + 60)
            linear.weight.grad = None
            del loss
        assert tracker.total == 4 * (60 + 24)


def test_cross_entropy_by_hand():
    """bf16 logits, fp32 loss: 2 + 4 + 4 bytes a logit in forward, 4 + 4 + 4 in backward, 4 kept between."""
    tracker = StorageTracker()
    with FakeTensorMode():
        x = torch.empty(8, 1, dtype=torch.bfloat16, requires_grad=True)
        labels = torch.zeros(8, dtype=torch.int64)
        with tracker:
            tracker.enter("forward")
            logits = x.expand(8, 1000) * 1
            n = logits.numel()
            loss = loss_of(logits, labels)
            assert tracker.peak == pytest.approx((2 + 4 + 4) * n, abs=64)
            del logits
            assert tracker.total == pytest.approx(4 * n, abs=64)
            tracker.enter("backward")
            loss.backward()
            assert tracker.phase_peak["backward"] == pytest.approx((4 + 4 + 4) * n, abs=64)


def test_residual_gradients_are_added_in_place_and_views_are_not():
    """The engine's rule, which a dispatch mode would hide."""
    tracker, cuda = StorageTracker(), CudaBehaviour()
    cuda.in_backward = True
    with FakeTensorMode():
        a, b = torch.empty(100), torch.empty(100)
        with tracker, cuda:
            tracker.enter("backward")
            tracker.add(a, "temporaries")
            tracker.add(b, "temporaries")
            total = torch.add(a, b)
            assert tracker.total == 800
            fresh = torch.add(a.view(10, 10), b.view(10, 10))
            assert tracker.total == 1200
            del total, fresh


@pytest.mark.parametrize("setup", SETUPS, ids=name_of)
def test_saved_bytes_two_ways(setup):
    """Autograd's hooks and the storages alive when backward starts agree, but for the loss itself."""
    got = traced(setup)
    assert got.live_after_forward_bytes - got.saved_bytes == 4
    assert sum(got.peak_by_category.values()) == got.peak_bytes == max(got.phase_peak_bytes.values())


@pytest.mark.parametrize("setup", SETUPS, ids=name_of)
def test_saved_bytes_are_those_of_a_real_run(setup):
    """The same code on real CPU tensors saves the same, but for LayerNorm's statistics (bf16 on a CPU)."""
    dims, got = dims_of(setup), traced(setup)
    torch.manual_seed(0)
    real = saved_for_backward(*build(dims, setup, BATCH, SEQ))
    if setup.style == "gpt2" and setup.dtype == torch.bfloat16:
        norms = 1 if setup.recompute == "full" else 2 * dims.layers + 1
        assert sum(real.by_module.values()) + norms * 2 * 2 * BATCH * SEQ == got.saved_bytes
    else:
        assert real.by_module == got.saved_by_module


@pytest.mark.parametrize(
    ("setup", "shape"),
    [(setup, (BATCH, SEQ)) for setup in SETUPS] + [(setup, (1, 4)) for setup in SETUPS[::5]],
    ids=lambda value: name_of(value) if isinstance(value, Setup) else f"{value[0]}x{value[1]}",
)
def test_peak_is_memtrackers(setup, shape):
    """torch's own tracker, on the same step, finds the same peak. The setups of the shortest step have every value of
    each field."""
    dims, cuda, theirs = dims_of(setup), CudaBehaviour(), MemTracker()
    with FakeTensorMode():
        model, ids, labels = build(dims, setup, *shape)
        optimizer = Optimizer(list(model.parameters()), setup)
        model.recompute_context = cuda.recompute
        theirs.track_external(model, ids, labels, *optimizer.states())
        with theirs, cuda:
            run_step(model, optimizer, ids, labels, lambda phase: setattr(cuda, "in_backward", phase == "backward"))
    ours = traced(setup) if shape == (BATCH, SEQ) else trace(dims, setup, batch=shape[0], seq=shape[1])
    peak = theirs.get_tracker_snapshot("peak")[torch.device("cpu")]["Total"]
    assert peak == ours.peak_bytes


def real_peak(model, ids, labels):
    """The highest sum of what PyTorch's CPU allocator gave during forward and backward, by the profiler."""

    def step():
        loss_of(model(ids), labels).backward()
        for p in model.parameters():
            p.grad = None

    step()
    gc.collect()
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as prof:
        step()
    events, queue = [], list(prof.profiler.kineto_results.experimental_event_tree())
    while queue:
        event = queue.pop()
        queue += event.children
        if event.tag.name == "Allocation":
            events.append((event.start_time_ns, event.extra_fields.alloc_size))
    total = peak = 0
    for _, size in sorted(events, key=lambda e: e[0]):
        total += size
        peak = max(peak, total)
    return peak


@pytest.mark.parametrize(("batch", "seq", "vocab"), [(2, 64, 1000), (1, 8, 1000), (1, 128, 64), (4, 32, 300)])
@pytest.mark.parametrize("half", [0, 1])
def test_peak_is_that_of_a_real_step(batch, seq, vocab, half):
    """A real fp32 step of ops that a CPU runs without scratch allocates what the trace says, to the byte.

    Of the four pairs of `recompute` and `tied`, two are tried with each shape, and each pair with two shapes."""
    tied = bool(half)
    recompute = "full" if tied != (batch == 1) else "none"
    dims = Dims(vocab=vocab, hidden=64, layers=3, heads=4, kv_heads=4, head_dim=16, intermediate=256, tied=tied)
    setup = Setup(style="gpt2", precision="fp32", attention="standard", recompute=recompute)
    got = trace(dims, setup, batch=batch, seq=seq)
    traced = max(got.phase_peak_bytes[phase] for phase in ("forward", "loss", "backward")) - got.steady_bytes
    torch.manual_seed(0)
    assert traced == pytest.approx(real_peak(*build(dims, setup, batch, seq)), rel=1e-3)


def test_opaque_ops_compute_what_they_stand_for():
    """RMSNorm and flash attention, values and gradients, against torch's own."""
    torch.manual_seed(0)
    setup = Setup(precision="fp32")
    model, ids, labels = build(TINY, setup, 2, 24)
    loss_of(model(ids), labels).backward()
    other, *_ = build(TINY, Setup(precision="fp32", attention="standard"), 2, 24)
    other.load_state_dict({**model.state_dict(), "mask": other.mask})
    for module in other.modules():
        if isinstance(module, nn.RMSNorm):
            module.forward = lambda x, m=module: F.rms_norm(x, m.normalized_shape, m.weight, 1e-6)
    loss_of(other(ids), labels).backward()
    for (name, a), b in zip(model.named_parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad, rtol=1e-4, atol=1e-6, msg=name)


@pytest.mark.parametrize(
    ("setup", "state_bytes", "gradient_bytes"),
    [
        (Setup(precision="fp32"), 4 + 8, 4),
        (Setup(precision="bf16"), 2 + 4, 2),
        (Setup(gradients="bf16"), 2 + 4 + 8, 2),
        (Setup(gradients="fp32"), 2 + 4 + 8, 4),
    ],
)
def test_bytes_per_parameter(setup, state_bytes, gradient_bytes):
    """What is alive between two steps and in the optimizer step, which makes no temporaries."""
    got = trace(TINY, setup, batch=1, seq=8)
    inputs = got.peak_by_category["inputs"]
    assert got.steady_bytes == state_bytes * got.parameters + inputs
    assert got.phase_peak_bytes["optimizer"] == (state_bytes + gradient_bytes) * got.parameters + inputs


def test_seven_billion_parameters():
    """LLaMA-2-7B at full size, sequence 4096, is traced in seconds; a block saves what a hand count gives."""
    got = trace(LLAMA2_7B, Setup(), batch=1, seq=4096)
    assert got.parameters == 6_738_415_616
    tokens, d, f = 4096, 4096, 11008
    by_hand = 4 * 2 * d + 4 * 2 * d + 4 * 32 + 4 * 2 * f + 2 * 4  # norms, q k v out, logsumexp, SwiGLU, rstd
    assert got.saved_under("blocks.7") == tokens * by_hand
    assert got.peak_phase == "backward"
    assert got.peak_op == "aten._log_softmax_backward_data.default"
