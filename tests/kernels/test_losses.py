"""Losses beyond their cases: chunks and tiles, memory, what torch and the model say, compilation, refusals."""

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
from llmbench.kernels.loss import linear as file
from llmbench.kernels.loss import linear_backward as linear_gradients
from llmbench.kernels.loss import linear_forward as linear_losses
from llmbench.kernels.loss.cross_entropy import cross_entropy
from llmbench.kernels.loss.linear import KERNEL, Case, linear_cross_entropy, reference
from llmbench.kernels.loss.linear_backward import Wanted, gradients, rows_a_chunk
from llmbench.kernels.loss.rows import Options
from llmbench.kernels.proof.check import check, compare
from llmbench.sizing.lower import lower
from llmbench.sizing.workload import Workload
from llmbench.spec.catalog import load_bundled

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


def inputs(case: Case, dtype: torch.dtype = torch.float32, seed: int = 0) -> dict[str, Any]:
    return KERNEL.inputs(case, Random(seed, dtype, DEVICE))


def leaves(given: dict[str, Any]) -> list[Tensor]:
    return [given[name].requires_grad_() for name in KERNEL.differentiable if given[name] is not None]


@pytest.mark.parametrize("reduction", ["mean", "none"])
@pytest.mark.parametrize("dtype", KERNEL.dtypes)
def test_chunks_add_up(reduction: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ten chunks, the last of them short: gradients within the budget of a single product."""
    monkeypatch.setattr(linear_gradients, "rows_a_chunk", lambda tokens: 2)
    for verdict in check(KERNEL, Case(19, 24, 33, reduction, bias=True, ignored=2), dtype, 0, DEVICE):
        assert verdict.passed, verdict


@pytest.mark.parametrize("hidden", [64, 37])
def test_one_program_walks_many_tiles(hidden: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Five rows of tiles in groups of two, by one program; with tensor descriptors and without."""
    monkeypatch.setattr(linear_losses, "multiprocessors", lambda device: 1)
    (shipped, *_) = linear_losses.tile_configurations(4, 90)
    small = launching.Config(**dict(shipped) | {"GROUP": 2}, num_warps=8)
    monkeypatch.setattr(linear_losses, "tile_configurations", lambda *of: [small])
    given = inputs(Case(600, hidden, 300, "none", ignored=70, label_smoothing=0.1))
    with launching.poisoned():
        found = linear_cross_entropy(**given)
    exact = {key: of.double() if isinstance(of, Tensor) and of.is_floating_point() else of for key, of in given.items()}
    verdict = compare("out", found, reference(**given), reference(**exact))
    assert verdict.passed, verdict


@pytest.mark.gpu
@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_real_sizes(reduction: str) -> None:
    """GPT-2's vocabulary, which no power of two divides, in several chunks."""
    case = Case(4500, 768, 50257, reduction, ignored=100)
    for seed in range(4):
        for verdict in check(KERNEL, case, torch.bfloat16, seed, DEVICE):
            assert verdict.passed, (seed, verdict)


class Memory(TorchDispatchMode):
    """The most bytes that were alive at once of what torch made, on whatever device."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.most = 0
        self.seen: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for of in out if isinstance(out, (tuple, list)) else (out,):
            if isinstance(of, Tensor):
                self.count(of.untyped_storage())
        return out

    def count(self, storage: torch.UntypedStorage) -> None:
        key = storage._cdata
        if key in self.seen:
            return
        self.seen.add(key)
        self.now += storage.nbytes()
        self.most = max(self.most, self.now)
        weakref.finalize(storage, self.free, key, storage.nbytes())

    def free(self, key: int, size: int) -> None:
        self.seen.discard(key)
        self.now -= size


REAL = [(8192, 4096, 128256), (16384, 3584, 256000), (65536, 2048, 50257), (2049, 5120, 151936)]


def operands(tokens: int, hidden: int, vocabulary: int) -> tuple[Tensor, Tensor, Tensor]:
    x = torch.empty(tokens, hidden, dtype=torch.bfloat16, device="meta")
    weight = torch.empty(vocabulary, hidden, dtype=torch.bfloat16, device="meta")
    return x, weight, torch.empty(tokens, dtype=torch.int64, device="meta")


@pytest.mark.parametrize(("tokens", "hidden", "vocabulary"), REAL)
def test_gradients_take_an_eighth_of_the_logits(tokens: int, hidden: int, vocabulary: int) -> None:
    """Beside the operands and their gradients; on tensors without memory, where nothing runs."""
    with launching.captured(90), Memory() as memory:
        x, weight, targets = operands(tokens, hidden, vocabulary)
        given = memory.now
        losses = launching.empty(tokens, like=x, dtype=torch.float32)
        ones = torch.ones((), device="meta").expand(tokens)
        gradients(ones, x, weight, targets, None, Options(), Wanted(True, True, False), losses=losses)
    outputs = 2 * (x.numel() + weight.numel())
    logits = 2 * tokens * vocabulary
    assert logits / 20 < memory.most - given - outputs <= logits / 8  # 0 would mean that the buffer was not counted


@pytest.mark.parametrize(("tokens", "hidden", "vocabulary"), REAL)
def test_losses_take_a_64th_of_the_logits(tokens: int, hidden: int, vocabulary: int) -> None:
    with launching.captured(90), Memory() as memory:
        x, weight, targets = operands(tokens, hidden, vocabulary)
        given = memory.now
        linear_losses.linear_losses(x, weight, targets, None, Options())
    assert 0 < memory.most - given <= 2 * tokens * vocabulary / 63


def test_gradients_are_handed_on_without_a_copy(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the forward pass wrote is what the parameter's grad becomes."""
    made: list[Tensor] = []

    def noted(*args: Any, **kwargs: Any) -> tuple[Tensor, Tensor, Tensor]:
        held = gradients(*args, **kwargs)
        made.append(held[1].data_ptr())
        return held

    monkeypatch.setattr(file, "gradients", noted)
    given = inputs(Case(5, 16, 40))
    weight = given["weight"].requires_grad_()
    linear_cross_entropy(**given).backward()
    assert weight.grad is not None
    assert made == [weight.grad.data_ptr()]


def test_every_chunk_is_short_of_an_eighth() -> None:
    for tokens in (2049, 4096, 8192, 8193, 30000, 1 << 20):
        assert rows_a_chunk(tokens) * 8 < tokens
        assert rows_a_chunk(tokens) % 128 == 0
    assert rows_a_chunk(1) == rows_a_chunk(2048) == 256


@pytest.mark.parametrize("name", ["llama3-8b", "gemma2-9b", "gpt2"])
def test_flops_are_those_of_the_sizing_table(name: str) -> None:
    """The head's Op, forward and backward."""
    spec = load_bundled(name)
    op = next(op for op in lower(spec, Workload.train(512)) if op.name == "lm_head")
    cost = KERNEL.cost(Case(512, spec.hidden_size, spec.vocab_size), torch.bfloat16)
    assert op.forward_flops == cost.flops
    assert op.backward_flops == cost.backward_flops


@pytest.mark.parametrize("frozen", ["x", "weight"])
def test_a_frozen_operand_costs_nothing(frozen: str) -> None:
    from torch.utils.flop_counter import FlopCounterMode

    given = inputs(Case(6, 16, 40, bias=True))
    parameters = leaves(given)
    whole = torch.autograd.grad(linear_cross_entropy(**given), parameters)
    expected = dict(zip(KERNEL.differentiable, whole, strict=True))
    given[frozen] = given[frozen].detach()
    rest = [name for name in KERNEL.differentiable if name != frozen]
    with FlopCounterMode(display=False) as counter:
        found = torch.autograd.grad(linear_cross_entropy(**given), [given[name] for name in rest])
    assert counter.get_total_flops() == 2 * 2 * 6 * 16 * 40
    for name, grad in zip(rest, found, strict=True):
        assert torch.equal(grad, expected[name])


@pytest.mark.parametrize("loss", [linear_cross_entropy, cross_entropy])
def test_torch_says_the_same(loss: Callable[..., Tensor]) -> None:
    """Of a batch with rows of any strides, against torch's own loss; a mean of no tokens is NaN."""
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


def test_a_mean_in_fp16_keeps_its_small_gradients() -> None:
    """Those of words that no token has to predict, under a loss scaled by 1024, as fp16 is trained: held unscaled, the
    gradients of their logits would be numbers below 2e-6, which fp16 rounds to steps of 6e-8."""
    given = inputs(Case(40, 32, 20000), torch.float16)
    given["weight"] *= 0.1
    given["targets"] %= 10
    exact = {key: of.double() if isinstance(of, Tensor) and of.is_floating_point() else of for key, of in given.items()}

    def results(function: Callable[..., Tensor], of: dict[str, Any]) -> Tensor:
        weight = of["weight"].requires_grad_()
        (grad,) = torch.autograd.grad(function(**of) * 1024, weight)
        return grad[10:]

    ours = results(linear_cross_entropy, given)
    assert compare("dweight", ours, results(reference, given), results(reference, exact)).passed


def test_an_impossible_target_is_not_overlooked() -> None:
    """Its loss and its token's gradient are NaN, those of the others are not."""
    given = inputs(Case(4, 16, 30, "none"))
    given["targets"][1], given["targets"][3] = 30, -1
    with launching.poisoned():
        losses = linear_cross_entropy(**given)
        (dx,) = torch.autograd.grad(
            linear_cross_entropy(**given | {"x": given["x"].requires_grad_()}).sum(), given["x"]
        )
        held = linear_cross_entropy(**given | {"reduction": "sum"})
        (again,) = torch.autograd.grad(held, given["x"])
    wrong = torch.tensor([False, True, False, True], device=DEVICE)
    assert torch.equal(losses.isnan(), wrong)
    assert held.isnan()
    for grad in (dx, again):
        assert torch.equal(grad.isnan().all(1), wrong)
        assert torch.equal(grad.isnan().any(1), wrong)
    logits = given["x"].detach() @ given["weight"].T
    assert torch.equal(cross_entropy(logits, given["targets"], reduction="none").isnan(), wrong)


def test_a_second_backward_pass_is_refused() -> None:
    given = inputs(Case(4, 16, 30))
    parameters = leaves(given)
    loss = linear_cross_entropy(**given)
    torch.autograd.grad(loss, parameters, retain_graph=True)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        torch.autograd.grad(loss, parameters)


def test_no_tokens() -> None:
    given = inputs(Case(4, 16, 30, "sum", bias=True))
    given["x"], given["targets"] = given["x"][:0], given["targets"][:0]
    with launching.poisoned():
        loss = linear_cross_entropy(**given)
        assert loss == 0
        assert linear_cross_entropy(**given | {"reduction": "none"}).shape == (0,)
        loss = linear_cross_entropy(**given | {"weight": given["weight"].requires_grad_()})
        (grad,) = torch.autograd.grad(loss, given["weight"])
    assert not grad.any()
    assert cross_entropy(torch.empty(0, 7, device=DEVICE), given["targets"], reduction="sum") == 0


@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_compilation_sees_through(reduction: str) -> None:
    """One graph, and its backward, where gradients are scaled in place."""
    given = inputs(Case(6, 16, 30, reduction, soft_cap=5.0))
    parameters = leaves(given)

    def twice(**of: Any) -> Tensor:
        return linear_cross_entropy(**of | {"x": of["x"] * 1.5}).sum() * 2

    compiled = torch.compile(twice, fullgraph=True, backend="aot_eager")
    found = torch.autograd.grad(compiled(**given), parameters)
    for one, other in zip(found, torch.autograd.grad(twice(**given), parameters), strict=True):
        torch.testing.assert_close(one, other)


def test_what_does_not_fit_is_refused() -> None:
    given = inputs(Case(4, 16, 30, bias=True))
    wrong: dict[str, Any] = {
        "x": given["x"][:, :8],
        "weight": given["weight"].bfloat16(),
        "bias": given["bias"][:7],
        "targets": given["targets"][:2],
    }
    for name, of in wrong.items():
        with pytest.raises(ValueError, match="needed"):
            linear_cross_entropy(**given | {name: of})
    logits, targets = torch.randn(4, 30, device=DEVICE), given["targets"]
    for shape in (logits.double(), logits[:, :0], logits[:3]):
        with pytest.raises(ValueError, match="needed"):
            cross_entropy(shape, targets)
    with pytest.raises(ValueError, match="int64"):
        cross_entropy(logits, targets.float())
    options: list[dict[str, Any]] = [{"reduction": "median"}, {"soft_cap": 0.0}, {"label_smoothing": 1.5}]
    for option in options:
        for call in (
            lambda **of: linear_cross_entropy(**given | of),
            lambda **of: cross_entropy(logits, targets, **of),
        ):
            with pytest.raises(ValueError, match=next(iter(option))):
                call(**option)
