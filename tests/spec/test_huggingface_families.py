"""The files of importers and of weight names: one lineage each, under the same name on both sides."""

from __future__ import annotations

import ast
import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest

from llmbench.spec.huggingface.families import FAMILIES

ROOT = Path(__file__).resolve().parents[2]
IMPORTERS = ROOT / "llmbench" / "spec" / "huggingface" / "families"
WEIGHTS = ROOT / "llmbench" / "spec" / "weights" / "families"
MOST_LINES = 650


@pytest.fixture(scope="module")
def tool() -> ModuleType:
    """tools/lineages.py, loaded from its file: tools/ is no package."""
    spec = importlib.util.spec_from_file_location("lineages", ROOT / "tools" / "lineages.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_list_of_lineages_is_up_to_date(tool: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every model type stands in the docstring of the package, beside the file that reads it."""
    monkeypatch.setattr(sys, "argv", ["lineages.py", "--check"])
    assert tool.main() == 0, "run python tools/lineages.py"
    assert sum(map(len, tool.lineages().values())) == len(FAMILIES)


def test_weight_names_stand_in_the_file_of_their_importer() -> None:
    """`table("llama", ...)` is in llama.py, because `@family("llama", ...)` is."""
    from llmbench.model.weights import supported_families

    file_of: dict[str, str] = {}
    for file in WEIGHTS.glob("*.py"):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id.endswith("table"):
                names = node.args if node.func.id == "table" else node.args[:1]
                file_of |= {name.value: file.stem for name in names if isinstance(name, ast.Constant)}
    assert sorted(file_of) == supported_families()
    assert file_of == {name: FAMILIES[name].__module__.rpartition(".")[2] for name in file_of}


@pytest.mark.parametrize("folder", [IMPORTERS, WEIGHTS], ids=["importers", "weights"])
def test_a_lineage_fits_in_one_file(folder: Path) -> None:
    for file in folder.glob("*.py"):
        assert len(file.read_text(encoding="utf-8").splitlines()) <= MOST_LINES, file
