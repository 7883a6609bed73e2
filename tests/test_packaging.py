"""What is packaged is what is in the tree, and names are kept where others would collide with them."""

from __future__ import annotations

import re
import tomllib
from importlib.metadata import version
from pathlib import Path

import pytest

import llmbench

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
SETUPTOOLS = PROJECT["tool"]["setuptools"]
ELSEWHERE = {"llmbench.kernels": "kernels", "llmbench.specs": "specs"}
"""Packages that live outside the package's folder."""


def folders(top: Path) -> list[Path]:
    """The folder and all below it that hold something to install."""
    paths = [top, *(path for path in top.rglob("*") if path.is_dir())]
    return [path for path in paths if path.name != "__pycache__" and any(packaged_files(path))]


def packaged_files(folder: Path) -> list[Path]:
    """The files in a folder that are part of a package."""
    return [path for path in folder.iterdir() if path.suffix in (".py", ".toml", ".json") and path.is_file()]


def packages_in_the_tree() -> set[str]:
    """Every package there is, by its name."""
    links = [ROOT / name.replace(".", "/") for name in ELSEWHERE]
    own = [path for path in folders(ROOT / "llmbench") if not any(path.is_relative_to(link) for link in links)]
    names = {".".join(path.relative_to(ROOT).parts) for path in own}
    for name, folder in ELSEWHERE.items():
        names.add(name)
        inside = [path.relative_to(ROOT / folder) for path in folders(ROOT / folder)]
        names |= {".".join([name, *path.parts]) for path in inside}
    return names


def test_the_package_list_is_the_tree() -> None:
    assert sorted(SETUPTOOLS["packages"]) == SETUPTOOLS["packages"]
    assert set(SETUPTOOLS["packages"]) == packages_in_the_tree()
    assert SETUPTOOLS["package-dir"] == ELSEWHERE


def test_every_file_of_a_package_is_installed() -> None:
    """Python files are; others need a line in package-data."""
    patterns = SETUPTOOLS["package-data"]
    for name in SETUPTOOLS["packages"]:
        first = ".".join(name.split(".")[:2])
        folder = ROOT / name.replace(first, ELSEWHERE.get(first, first.replace(".", "/")), 1).replace(".", "/")
        for file in packaged_files(folder):
            if file.suffix != ".py":
                assert any(file.match(pattern) for pattern in patterns.get(name, [])), f"{file} is left out"


@pytest.mark.parametrize("name", ELSEWHERE)
def test_links_show_the_same_files(name: str) -> None:
    link = ROOT / name.replace(".", "/")
    assert link.is_symlink()
    assert link.resolve() == ROOT / ELSEWHERE[name]


@pytest.mark.parametrize("folder", ELSEWHERE.values())
def test_no_package_shadows_another(folder: str) -> None:
    """PyPI has a package `kernels`; a folder without `__init__.py` loses to it."""
    assert list((ROOT / folder).rglob("__init__.py")) == []


def test_the_version_is_said_once() -> None:
    text = (ROOT / "llmbench" / "_version.py").read_text(encoding="utf-8")
    (said,) = re.findall(r'^__version__ = "([^"]+)"$', text, re.M)
    assert said == llmbench.__version__ == version("llmbench")
    assert "version" not in PROJECT["project"]
    assert PROJECT["project"]["dynamic"] == ["version"]
    assert SETUPTOOLS["dynamic"]["version"] == {"attr": "llmbench._version.__version__"}
    assert re.fullmatch(r"\d+\.\d+\.\d+((a|b|rc|\.dev)\d+)?", said)


def test_the_base_install_is_small() -> None:
    names = {re.match(r"[A-Za-z0-9_.-]+", line)[0] for line in PROJECT["project"]["dependencies"]}
    assert names == {"typer", "rich", "msgspec", "nvidia-ml-py"}
    assert {"gpu", "plot", "hf", "learn", "dev"} <= set(PROJECT["project"]["optional-dependencies"])


def test_hints_install_extras_that_exist() -> None:
    sources = [path.read_text(encoding="utf-8") for path in (ROOT / "llmbench").rglob("*.py")]
    named = {name for text in sources for name in re.findall(r"install_hint\(.(\w+).\)", text)}
    assert named == {"gpu", "hf", "learn", "plot"}
    assert named <= set(PROJECT["project"]["optional-dependencies"])
