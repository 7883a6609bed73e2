"""Compare a built sdist and wheel with the tree that they were built from.

    python tools/check_distribution.py dist/llmbench-0.1.0.tar.gz dist/llmbench-0.1.0-py3-none-any.whl

The wheel must have one top-level name, `llmbench`, with each spec and module of the tree once. The sdist must have all
files for a build, the license and the README.
"""

from __future__ import annotations

import sys
import tarfile
import zipfile
from pathlib import Path

ROOT = Path(__file__).parent.parent


def expected() -> set[str]:
    """The names of the files that a wheel must have."""
    found = {f"llmbench/specs/{file.relative_to(ROOT / 'specs')}" for file in (ROOT / "specs").rglob("*.toml")}
    found |= {f"llmbench/kernels/{file.relative_to(ROOT / 'kernels')}" for file in (ROOT / "kernels").rglob("*.py")}
    for file in (ROOT / "llmbench").rglob("*.*"):
        name = str(file.relative_to(ROOT))
        if file.suffix in (".py", ".json", ".typed") and not name.startswith(("llmbench/kernels/", "llmbench/specs/")):
            found.add(name)
    return found


def check_wheel(path: Path) -> list[str]:
    """The problems of a wheel."""
    names = zipfile.ZipFile(path).namelist()
    own = [name for name in names if ".dist-info/" not in name]
    problems = [f"wheel: top-level name {name}" for name in {name.split("/")[0] for name in own} - {"llmbench"}]
    problems += [f"wheel: has {name} twice" for name in set(own) if own.count(name) > 1]
    problems += [f"wheel: lacks {name}" for name in sorted(expected() - set(own))]
    problems += [f"wheel: has {name}, which the tree does not have" for name in sorted(set(own) - expected())]
    return problems


def check_sdist(path: Path) -> list[str]:
    """The problems of an sdist."""
    with tarfile.open(path) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    wanted = {name.replace("llmbench/specs/", "specs/").replace("llmbench/kernels/", "kernels/") for name in expected()}
    wanted |= {"LICENSE", "README.md", "pyproject.toml"}
    return [f"sdist: lacks {name}" for name in sorted(wanted - names)]


def main() -> int:
    """Print the problems; 1 if there are any."""
    problems = []
    for path in map(Path, sys.argv[1:]):
        problems += check_wheel(path) if path.suffix == ".whl" else check_sdist(path)
        print(f"{path.name}: {path.stat().st_size / 1e6:.2f} MB")
    print("\n".join(problems) or "both are complete, and the only top-level name of the wheel is llmbench")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
