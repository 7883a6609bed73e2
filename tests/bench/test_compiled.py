"""Rivals by torch.compile: they have backward passes, in every thread, and are never plain torch by another name."""

from __future__ import annotations

import threading
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

from llmbench.bench import candidates as rivals
from llmbench.bench.candidates import COMPILED, Entry, entry_group
from llmbench.bench.compiling import compiled, forget_compiled
from llmbench.bench.experiments.experiment import run
from llmbench.bench.pieces import PIECES, find_piece
from llmbench.errors import CannotRunError
from llmbench.measure.clock import CpuClock
from llmbench.measure.results import Row
from llmbench.sizing.work import Pass
from llmbench.spec.model import Norm
from tests.bench.test_pieces import PACE, references, rows, setting, small


class Graphs:
    """A compiler that keeps what it was given; it makes no code, but autograd is traced and partitioned as ever."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.compiled = 0
        monkeypatch.setattr(rivals, "compiled", partial(compiled, backend=self))

    def __call__(self, graph: torch.fx.GraphModule, inputs: list[Any]) -> Any:
        self.compiled += 1
        return torch._dynamo.lookup_backend("aot_eager")(graph, inputs)


@pytest.fixture
def graphs(monkeypatch: pytest.MonkeyPatch) -> Graphs:
    """What the rivals of a test are compiled to."""
    return Graphs(monkeypatch)


@pytest.mark.parametrize("passed", ["backward", "both"])
@pytest.mark.parametrize("name", [name for name, each in PIECES.items() if each.phase == "train"])
def test_every_piece_has_a_compiled_backward(name: str, passed: Pass, graphs: Graphs) -> None:
    """Its check, which is of the same shape here, has one that runs once; that which is timed is repeated."""
    (row,) = rows(find_piece(name), setting(find_piece(name), of=passed), COMPILED)
    assert (row.status, row.reason) == ("ok", None)
    assert graphs.compiled


def test_code_that_inductor_makes_runs_backward_twice() -> None:
    """With what torch's cache holds from a pass that ran once."""
    assert [
        rows(find_piece("norm"), setting(find_piece("norm"), of=of), COMPILED)[0].reason for of in ("both", "backward")
    ] == [
        None,
        None,
    ]


def normed(x: Tensor, weight: Tensor) -> Tensor:
    """What keeps a number a row for its backward pass, which compiled code would write over."""
    return torch.nn.functional.rms_norm(x, x.shape[-1:], weight)


def test_a_backward_pass_runs_twice_in_autograds_own_threads() -> None:
    """On a GPU it runs in one; here we make it."""
    forget_compiled()
    fast = compiled(normed, backend="aot_eager")
    x, weight = torch.randn(8, 64, requires_grad=True), torch.randn(64, requires_grad=True)
    torch.autograd.grad(fast(x, weight).sum(), [x, weight])  # compiled for one that runs once
    out = fast(x, weight).sum()
    grads: list[Tensor] = []
    problems: list[RuntimeError] = []

    def backward() -> None:
        try:
            grads.extend(torch.autograd.grad(out, [x], retain_graph=True)[0] for _ in range(2))
        except RuntimeError as problem:
            problems.append(problem)

    thread = threading.Thread(target=backward)
    thread.start()
    thread.join()
    assert not problems
    torch.testing.assert_close(*grads)


def group_rows(*entries: Entry) -> list[Row]:
    """What these come to, side by side."""
    group = entry_group(entries, experiment="test", case={}, pace=PACE)
    return list(run([group], clock=CpuClock(), references=references()))


@pytest.mark.parametrize("passed", ["forward", "both"])
def test_rivals_of_a_group_stay_compiled(passed: Pass, graphs: Graphs) -> None:
    """Two norms, each compiled for its check and once more for what is timed."""
    of = find_piece("norm")
    entries = []
    for norm in (Norm(kind="layernorm", bias=True), Norm()):
        at = setting(of, small(norm=norm), seq_len=300, of=passed)
        entries.append(Entry(label=norm.kind, piece=of, setting=at, impl=COMPILED))
    for _ in range(4):  # as many groups of an experiment are one after the other
        assert [row.status for row in group_rows(*entries)] == ["ok", "ok"]
    assert graphs.compiled == 4 * 4


def test_where_torch_stops_compiling_it_is_said() -> None:
    forget_compiled()
    fast = compiled(lambda x, n: x * n, backend="eager")
    x = torch.ones(2)
    assert [float(fast(x, n)[0]) for n in range(8)] == list(range(8))
    with pytest.raises(CannotRunError, match="gives up here: one function was compiled 8 times"):
        fast(x, 8)
    forget_compiled()
    assert float(fast(x, 8)[0]) == 8
