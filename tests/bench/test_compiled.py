"""Candidates by torch.compile: they have backward passes in every thread, and never fall back to plain torch."""

from __future__ import annotations

import threading
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

from llmbench.bench.candidates import Entry, entry_group
from llmbench.bench.experiments.experiment import run
from llmbench.bench.extra_candidates import compiled as torch_compile
from llmbench.bench.extra_candidates.compiled import compiled, forget_compiled
from llmbench.bench.pieces import PIECES, find_piece
from llmbench.errors import CannotRunError
from llmbench.measure.clock import CpuClock
from llmbench.measure.results import Row
from llmbench.sizing.work import Pass
from llmbench.spec.model import Norm
from tests.bench.test_pieces import PACE, references, rows, setting, small


class Graphs:
    """A compiler that counts its graphs and generates no code. Autograd is traced and partitioned as usual."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.compiled = 0
        monkeypatch.setattr(torch_compile, "compiled", partial(compiled, backend=self))

    def __call__(self, graph: torch.fx.GraphModule, inputs: list[Any]) -> Any:
        self.compiled += 1
        return torch._dynamo.lookup_backend("aot_eager")(graph, inputs)


@pytest.fixture
def graphs(monkeypatch: pytest.MonkeyPatch) -> Graphs:
    """The compiler of a test's candidates."""
    return Graphs(monkeypatch)


@pytest.mark.parametrize("passed", ["backward", "both"])
@pytest.mark.parametrize("name", [name for name in PIECES if find_piece(name).phase == "train"])
def test_every_piece_has_a_compiled_backward(name: str, passed: Pass, graphs: Graphs) -> None:
    """The check has the same shape here and runs its backward once; the timed backward is repeated."""
    (row,) = rows(find_piece(name), setting(find_piece(name), direction=passed), "compiled")
    assert (row.status, row.reason) == ("ok", None)
    assert graphs.compiled


def test_code_from_inductor_runs_backward_twice() -> None:
    """torch's cache already has code from a pass that ran once."""
    assert [
        rows(find_piece("norm"), setting(find_piece("norm"), direction=direction), "compiled")[0].reason
        for direction in ("both", "backward")
    ] == [
        None,
        None,
    ]


def normed(x: Tensor, weight: Tensor) -> Tensor:
    """A norm that saves one number per row for its backward pass, which compiled code would overwrite."""
    return torch.nn.functional.rms_norm(x, x.shape[-1:], weight)


def test_a_backward_pass_runs_twice_in_autograds_own_threads() -> None:
    """On a GPU autograd runs in a thread of its own; here the test starts one."""
    forget_compiled()
    fast = compiled(normed, backend="aot_eager")
    x, weight = torch.randn(8, 64, requires_grad=True), torch.randn(64, requires_grad=True)
    torch.autograd.grad(fast(x, weight).sum(), [x, weight])  # compiled for a backward pass that runs once
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
    """The rows of these entries, timed side by side."""
    group = entry_group(entries, case={}, pace=PACE)
    return list(run([group], clock=CpuClock(), references=references()))


@pytest.mark.parametrize("passed", ["forward", "both"])
def test_candidates_of_a_group_stay_compiled(passed: Pass, graphs: Graphs) -> None:
    """Two norms, each compiled once for its check and once for the timed call."""
    piece = find_piece("norm")
    entries = []
    for norm in (Norm(kind="layernorm", bias=True), Norm()):
        at = setting(piece, small(norm=norm), seq_len=300, direction=passed)
        entries.append(Entry(label=norm.kind, piece=piece, setting=at, impl="compiled"))
    for _ in range(4):  # an experiment runs that many groups one after another
        assert [row.status for row in group_rows(*entries)] == ["ok", "ok"]
    assert graphs.compiled == 4 * 4


def test_the_recompile_limit_is_an_error() -> None:
    forget_compiled()
    fast = compiled(lambda x, n: x * n, backend="eager")
    x = torch.ones(2)
    assert [float(fast(x, n)[0]) for n in range(8)] == list(range(8))
    with pytest.raises(CannotRunError, match="recompile limit: it compiled one function 8 times"):
        fast(x, 8)
    forget_compiled()
    assert float(fast(x, 8)[0]) == 8
