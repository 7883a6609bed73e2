"""Losses beyond their cases: chunks and tiles, memory, torch's own loss, compilation, refused arguments."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from llmbench.kernels import launching
from llmbench.kernels.kernel import Random
from llmbench.kernels.loss import linear, tiles
from llmbench.kernels.loss.cross_entropy import Options, cross_entropy
from llmbench.kernels.loss.linear import (
    KERNEL,
    Case,
    Gradients,
    chunked_gradients,
    linear_cross_entropy,
    reference,
    rows_per_chunk,
)
from llmbench.kernels.proof.check import check, compare
from llmbench.sizing.lower import lower
from llmbench.sizing.workload import Workload
from llmbench.spec.catalog import load_bundled

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


def inputs(case: Case, dtype: torch.dtype = torch.float32, seed: int = 0) -> dict[str, Any]:
    return KERNEL.inputs(case, Random(seed, dtype, DEVICE))


def widened(arguments: dict[str, Any]) -> dict[str, Any]:
    """The arguments with floating-point tensors in fp64."""
    return {
        name: value.double() if isinstance(value, Tensor) and value.is_floating_point() else value
        for name, value in arguments.items()
    }


def leaves(arguments: dict[str, Any]) -> list[Tensor]:
    return [arguments[name].requires_grad_() for name in KERNEL.differentiable if arguments[name] is not None]


@pytest.mark.parametrize("reduction", ["mean", "none"])
@pytest.mark.parametrize("dtype", KERNEL.dtypes)
def test_chunks_add_up(reduction: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    """Gradients of ten chunks, the last one short, are within the budget of a single product."""
    monkeypatch.setattr(linear, "rows_per_chunk", lambda tokens: 2)
    for verdict in check(KERNEL, Case(19, 24, 33, reduction, bias=True, ignored=2), dtype, 0, DEVICE):
        assert verdict.passed, verdict


@pytest.mark.parametrize("hidden", [64, 37])
def test_one_program_walks_many_tiles(hidden: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """One program computes five rows of tiles in groups of two, with tensor descriptors and without."""
    monkeypatch.setattr(tiles, "multiprocessors", lambda device: 1)
    (shipped, *_) = tiles.tile_configurations(4, 90)
    small = launching.Config(**dict(shipped) | {"GROUP": 2}, num_warps=8)
    monkeypatch.setattr(tiles, "tile_configurations", lambda *_: [small])
    arguments = inputs(Case(600, hidden, 300, "none", ignored=70, label_smoothing=0.1))
    with launching.poisoned():
        result = linear_cross_entropy(**arguments)
    exact = widened(arguments)
    verdict = compare("out", result, reference(**arguments), reference(**exact))
    assert verdict.passed, verdict


@pytest.mark.gpu
@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_real_sizes(reduction: str) -> None:
    """GPT-2's vocabulary, an odd number, in several chunks."""
    case = Case(4500, 768, 50257, reduction, ignored=100)
    for seed in range(4):
        for verdict in check(KERNEL, case, torch.bfloat16, seed, DEVICE):
            assert verdict.passed, (seed, verdict)


class Memory(TorchDispatchMode):
    """The peak bytes of tensors that torch allocated, on any device."""

    def __init__(self) -> None:
        super().__init__()
        self.current = self.peak = 0
        self.seen: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for result in out if isinstance(out, (tuple, list)) else (out,):
            if isinstance(result, Tensor):
                self.count(result.untyped_storage())
        return out

    def count(self, storage: torch.UntypedStorage) -> None:
        key = storage._cdata
        if key in self.seen:
            return
        self.seen.add(key)
        self.current += storage.nbytes()
        self.peak = max(self.peak, self.current)
        weakref.finalize(storage, self.free, key, storage.nbytes())

    def free(self, key: int, size: int) -> None:
        self.seen.discard(key)
        self.current -= size


REAL = [(8192, 4096, 128256), (16384, 3584, 256000), (65536, 2048, 50257), (2049, 5120, 151936)]


def operands(tokens: int, hidden: int, vocabulary: int) -> tuple[Tensor, Tensor, Tensor]:
    x = torch.empty(tokens, hidden, dtype=torch.bfloat16, device="meta")
    weight = torch.empty(vocabulary, hidden, dtype=torch.bfloat16, device="meta")
    return x, weight, torch.empty(tokens, dtype=torch.int64, device="meta")


@pytest.mark.parametrize(("tokens", "hidden", "vocabulary"), REAL)
def test_gradients_take_an_eighth_of_the_logits(tokens: int, hidden: int, vocabulary: int) -> None:
    """The memory besides operands and gradients, on meta tensors, where no kernel runs."""
    with launching.captured(90), Memory() as memory:
        x, weight, targets = operands(tokens, hidden, vocabulary)
        before = memory.current
        losses = launching.empty(tokens, like=x, dtype=torch.float32)
        ones = torch.ones((), device="meta").expand(tokens)
        chunked_gradients(ones, x, weight, targets, None, Options(), Gradients(True, True, False), losses=losses)
    outputs = 2 * (x.numel() + weight.numel())
    logits = 2 * tokens * vocabulary
    assert logits / 20 < memory.peak - before - outputs <= logits / 8  # near 0 if the buffer was not counted


@pytest.mark.parametrize(("tokens", "hidden", "vocabulary"), REAL)
def test_losses_take_a_64th_of_the_logits(tokens: int, hidden: int, vocabulary: int) -> None:
    with launching.captured(90), Memory() as memory:
        x, weight, targets = operands(tokens, hidden, vocabulary)
        before = memory.current
        tiles.linear_losses(x, weight, targets, None, Options())
    assert 0 < memory.peak - before <= 2 * tokens * vocabulary / 63


def test_gradients_are_returned_without_a_copy(monkeypatch: pytest.MonkeyPatch) -> None:
    """The tensor that the forward pass wrote becomes the parameter's grad."""
    addresses: list[int] = []

    def recorded(*args: Any, **kwargs: Any) -> tuple[Tensor, Tensor, Tensor]:
        results = chunked_gradients(*args, **kwargs)
        addresses.append(results[1].data_ptr())
        return results

    monkeypatch.setattr(linear, "chunked_gradients", recorded)
    arguments = inputs(Case(5, 16, 40))
    weight = arguments["weight"].requires_grad_()
    linear_cross_entropy(**arguments).backward()
    assert weight.grad is not None
    assert addresses == [weight.grad.data_ptr()]


def test_every_chunk_has_less_than_an_eighth_of_the_tokens() -> None:
    for tokens in (2049, 4096, 8192, 8193, 30000, 1 << 20):
        assert rows_per_chunk(tokens) * 8 < tokens
        assert rows_per_chunk(tokens) % 128 == 0
    assert rows_per_chunk(1) == rows_per_chunk(2048) == 256


@pytest.mark.parametrize("name", ["llama3-8b", "gemma2-9b", "gpt2"])
def test_flops_are_those_of_the_sizing_table(name: str) -> None:
    """`cost` equals the head's op, forward and backward."""
    spec = load_bundled(name)
    op = next(op for op in lower(spec, Workload.train(512)) if op.name == "lm_head")
    cost = KERNEL.cost(Case(512, spec.hidden_size, spec.vocab_size), torch.bfloat16)
    assert op.forward_flops == cost.flops
    assert op.backward_flops == cost.backward_flops


@pytest.mark.parametrize("frozen", ["x", "weight"])
def test_a_frozen_operand_has_no_flops(frozen: str) -> None:
    from torch.utils.flop_counter import FlopCounterMode

    arguments = inputs(Case(6, 16, 40, bias=True))
    parameters = leaves(arguments)
    whole = torch.autograd.grad(linear_cross_entropy(**arguments), parameters)
    expected = dict(zip(KERNEL.differentiable, whole, strict=True))
    arguments[frozen] = arguments[frozen].detach()
    rest = [name for name in KERNEL.differentiable if name != frozen]
    with FlopCounterMode(display=False) as counter:
        gradients = torch.autograd.grad(linear_cross_entropy(**arguments), [arguments[name] for name in rest])
    assert counter.get_total_flops() == 2 * 2 * 6 * 16 * 40
    for name, grad in zip(rest, gradients, strict=True):
        assert torch.equal(grad, expected[name])


@pytest.mark.parametrize("loss", [linear_cross_entropy, cross_entropy])
def test_torchs_loss_is_the_same(loss: Callable[..., Tensor]) -> None:
    """Rows with strides give the loss and gradient of torch's own function; the mean of no tokens is NaN."""
    wide = torch.randn(2, 3, 40, device=DEVICE)
    x, weight = wide[..., ::2], torch.randn(20, 50, device=DEVICE).T
    targets = torch.tensor([[0, 49, -100], [-100, 7, 7]], dtype=torch.int32, device=DEVICE)
    tolerance = {"rtol": 1e-2, "atol": 1e-2} if DEVICE.type == "cuda" else {}  # tf32

    def ours(x: Tensor, targets: Tensor) -> Tensor:
        return loss(x, weight, targets) if loss is linear_cross_entropy else loss(x @ weight.T, targets)

    def theirs(x: Tensor, targets: Tensor) -> Tensor:
        return F.cross_entropy((x @ weight.T).flatten(0, 1), targets.flatten().long())

    for wanted in (targets, torch.full_like(targets, -100)):
        leaf = x.detach().clone().requires_grad_()
        (grad,) = torch.autograd.grad(ours(leaf, wanted), leaf)
        (expected,) = torch.autograd.grad(theirs(leaf, wanted), leaf)
        torch.testing.assert_close(ours(x, wanted), theirs(x, wanted), equal_nan=True, **tolerance)
        torch.testing.assert_close(grad, expected, **tolerance)


def test_a_mean_in_fp16_keeps_small_gradients() -> None:
    """Gradients of words that are no target, under a loss scaled by 1024, as in fp16 training.

    Without the scale of the stored gradients, they would be below 2e-6, which fp16 rounds to steps of 6e-8."""
    arguments = inputs(Case(40, 32, 20000), torch.float16)
    arguments["weight"] *= 0.1
    arguments["targets"] %= 10
    exact = widened(arguments)

    def results(function: Callable[..., Tensor], arguments: dict[str, Any]) -> Tensor:
        weight = arguments["weight"].requires_grad_()
        (grad,) = torch.autograd.grad(function(**arguments) * 1024, weight)
        return grad[10:]

    ours = results(linear_cross_entropy, arguments)
    assert compare("dweight", ours, results(reference, arguments), results(reference, exact)).passed


def test_a_target_outside_the_vocabulary_gives_nan() -> None:
    """The loss and the gradient of its token are NaN; those of other tokens are not."""
    arguments = inputs(Case(4, 16, 30, "none"))
    arguments["targets"][1], arguments["targets"][3] = 30, -1
    with launching.poisoned():
        losses = linear_cross_entropy(**arguments)
        (dx,) = torch.autograd.grad(
            linear_cross_entropy(**arguments | {"x": arguments["x"].requires_grad_()}).sum(), arguments["x"]
        )
        total = linear_cross_entropy(**arguments | {"reduction": "sum"})
        (again,) = torch.autograd.grad(total, arguments["x"])
    wrong = torch.tensor([False, True, False, True], device=DEVICE)
    assert torch.equal(losses.isnan(), wrong)
    assert total.isnan()
    for grad in (dx, again):
        assert torch.equal(grad.isnan().all(1), wrong)
        assert torch.equal(grad.isnan().any(1), wrong)
    logits = arguments["x"].detach() @ arguments["weight"].T
    assert torch.equal(cross_entropy(logits, arguments["targets"], reduction="none").isnan(), wrong)


def test_a_second_backward_pass_is_refused() -> None:
    arguments = inputs(Case(4, 16, 30))
    parameters = leaves(arguments)
    loss = linear_cross_entropy(**arguments)
    torch.autograd.grad(loss, parameters, retain_graph=True)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        torch.autograd.grad(loss, parameters)


@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_a_bias_may_have_any_stride(reduction: str) -> None:
    x, weight, targets = torch.randn(4, 16), torch.randn(40, 16), torch.arange(4)
    x, weight, targets, bias = (tensor.to(DEVICE) for tensor in (x, weight, targets, torch.randn(40, 2)[:, 0]))
    result = linear_cross_entropy(x, weight, targets, bias, reduction=reduction)
    torch.testing.assert_close(result, linear_cross_entropy(x, weight, targets, bias.clone(), reduction=reduction))


def test_a_gradient_of_0_stays_0_in_bf16() -> None:
    """Triton's interpreter converts 0 plus half of the last digit to the smallest normal number."""
    x = torch.zeros(0, 8, dtype=torch.bfloat16, device=DEVICE, requires_grad=True)
    weight = torch.ones(5, 8, dtype=torch.bfloat16, device=DEVICE, requires_grad=True)
    targets = torch.zeros(0, dtype=torch.int64, device=DEVICE)
    (2 * linear_cross_entropy(x, weight, targets, reduction="sum")).backward()
    assert weight.grad is not None
    assert weight.grad.count_nonzero() == 0


def test_no_tokens() -> None:
    arguments = inputs(Case(4, 16, 30, "sum", bias=True))
    arguments["x"], arguments["targets"] = arguments["x"][:0], arguments["targets"][:0]
    with launching.poisoned():
        loss = linear_cross_entropy(**arguments)
        assert loss == 0
        assert linear_cross_entropy(**arguments | {"reduction": "none"}).shape == (0,)
        loss = linear_cross_entropy(**arguments | {"weight": arguments["weight"].requires_grad_()})
        (grad,) = torch.autograd.grad(loss, arguments["weight"])
    assert not grad.any()
    assert cross_entropy(torch.empty(0, 7, device=DEVICE), arguments["targets"], reduction="sum") == 0


@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_it_compiles_without_graph_breaks(reduction: str) -> None:
    """One graph, and one for its backward pass, which scales gradients in place."""
    arguments = inputs(Case(6, 16, 30, reduction, soft_cap=5.0))
    parameters = leaves(arguments)

    def twice(**arguments: Any) -> Tensor:
        return linear_cross_entropy(**arguments | {"x": arguments["x"] * 1.5}).sum() * 2

    compiled = torch.compile(twice, fullgraph=True, backend="aot_eager")
    gradients = torch.autograd.grad(compiled(**arguments), parameters)
    for one, other in zip(gradients, torch.autograd.grad(twice(**arguments), parameters), strict=True):
        torch.testing.assert_close(one, other)


def test_invalid_arguments_are_refused() -> None:
    arguments = inputs(Case(4, 16, 30, bias=True))
    wrong: dict[str, Any] = {
        "x": arguments["x"][:, :8],
        "weight": arguments["weight"].bfloat16(),
        "bias": arguments["bias"][:7],
        "targets": arguments["targets"][:2],
    }
    for name, value in wrong.items():
        with pytest.raises(ValueError, match="must"):
            linear_cross_entropy(**arguments | {name: value})
    logits, targets = torch.randn(4, 30, device=DEVICE), arguments["targets"]
    for shape in (logits.double(), logits[:, :0], logits[:3]):
        with pytest.raises(ValueError, match="must"):
            cross_entropy(shape, targets)
    with pytest.raises(ValueError, match="int64"):
        cross_entropy(logits, targets.float())
    options: list[dict[str, Any]] = [{"reduction": "median"}, {"soft_cap": 0.0}, {"label_smoothing": 1.5}]
    for option in options:
        for call in (
            lambda **extra: linear_cross_entropy(**arguments | extra),
            lambda **extra: cross_entropy(logits, targets, **extra),
        ):
            with pytest.raises(ValueError, match=next(iter(option))):
                call(**option)
