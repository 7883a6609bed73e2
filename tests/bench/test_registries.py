"""The registries of pieces, experiments and implementations: names stand once, and everything else agrees with them."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

from llmbench.bench import experiments, pieces
from llmbench.bench.experiments import EXPERIMENTS, find_experiment
from llmbench.bench.extra_candidates import EXTRA_CANDIDATES, traits_of
from llmbench.bench.pieces import PIECES, default_implementations, describe_piece, find_piece
from llmbench.model.implementations import IMPLEMENTATIONS, described, with_own_attention
from llmbench.model.implementations.plain import STANDARD

ROOT = Path(__file__).parents[2]


def files(package: ModuleType) -> set[str]:
    """The modules and folders of a package."""
    folder = Path(str(package.__file__)).parent
    return {path.stem for path in folder.iterdir() if path.suffix == ".py" or (path / "__init__.py").is_file()}


def test_every_experiment_is_a_file_and_a_line() -> None:
    assert files(experiments) - {"__init__", "experiment", "synthetic"} == set(EXPERIMENTS)
    for name in EXPERIMENTS:
        assert find_experiment(name).name == name


@pytest.mark.parametrize("name", PIECES)
def test_every_piece_has_the_name_and_description_of_the_registry(name: str) -> None:
    piece = find_piece(name)
    assert (piece.name, piece.what) == (name, describe_piece(name))
    assert set(piece.shapes) == {"cuda", "cpu"}
    assert piece is find_piece(name)  # candidates of one piece share its weights by identity
    assert PIECES[name].place.split(".")[0] in files(pieces)


@pytest.mark.parametrize("name", IMPLEMENTATIONS)
def test_an_implementation_states_its_own_traits(name: str) -> None:
    """An implementation with its own attention must not inherit the traits of plain torch."""
    implementation = described(name)
    assert implementation.name == name
    assert (implementation.attend is STANDARD.attend) == implementation.traits.materialises_scores
    assert IMPLEMENTATIONS[name].scores.startswith("yes") == implementation.traits.materialises_scores


def test_the_default_rule_of_profile_names_every_piece() -> None:
    assert default_implementations() == (
        "Default on a GPU: flash for attention, decode and mla; fused for the other pieces. Default on a CPU: flash "
        "for attention, decode, block and model; sdpa for mla; standard for the other pieces."
    )


def test_implementations_with_the_attention_of_another_are_not_compared_twice() -> None:
    assert with_own_attention() == tuple(name for name in IMPLEMENTATIONS if name != "fused")


@pytest.mark.parametrize("name", EXTRA_CANDIDATES)
def test_a_baseline_has_traits_where_it_cannot_run(name: str) -> None:
    """Predictions of a row do not depend on whether its candidate can run here."""
    traits = traits_of(name)
    assert traits.materialises_scores == (name in ("grouped", "compiled"))


def test_lists_need_no_torch() -> None:
    """Help texts list the names without importing torch."""
    lists = "llmbench.bench.experiments, llmbench.bench.extra_candidates, llmbench.bench.pieces"
    code = f"import sys, llmbench.model.implementations, {lists}\n"
    subprocess.run([sys.executable, "-c", code + "assert 'torch' not in sys.modules"], check=True, cwd=ROOT)


def test_the_lists_of_the_guide_are_current() -> None:
    spec = importlib.util.spec_from_file_location("bench_lists", ROOT / "tools" / "bench_lists.py")
    assert spec is not None
    assert spec.loader is not None
    tool = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tool)
    for page in tool.TABLES:
        text = (tool.DOCS / page).read_text(encoding="utf-8")
        assert text == tool.current(page, text), "run python tools/bench_lists.py"
