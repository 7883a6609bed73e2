"""Compare a built sdist and wheel with the files of the repository from which they were built.

    python tools/check_distribution.py dist/llmbench-0.1.0.tar.gz dist/llmbench-0.1.0-py3-none-any.whl

The wheel must have only one top-level name, `llmbench`, and must contain each spec and module of the repository once.
The sdist must contain the license, the README and all files that a build needs.
"""

from __future__ import annotations

import sys
import tarfile
import zipfile
from pathlib import Path

ROOT = Path(__file__).parent.parent


def expected() -> set[str]:
    """Return the names of the files that a wheel must contain."""
    files = {f"llmbench/specs/{file.relative_to(ROOT / 'specs')}" for file in (ROOT / "specs").rglob("*.toml")}
    files |= {f"llmbench/kernels/{file.relative_to(ROOT / 'kernels')}" for file in (ROOT / "kernels").rglob("*.py")}
    for file in (ROOT / "llmbench").rglob("*.*"):
        name = str(file.relative_to(ROOT))
        if file.suffix in (".py", ".json", ".typed") and not name.startswith(("llmbench/kernels/", "llmbench/specs/")):
            files.add(name)
    return files


def check_wheel(path: Path) -> list[str]:
    """Return the problems of a wheel: top-level names other than llmbench, and missing, repeated or unexpected
    files."""
    names = zipfile.ZipFile(path).namelist()
    own = [name for name in names if ".dist-info/" not in name]
    problems = [f"wheel: bad top-level name {name}" for name in {name.split("/")[0] for name in own} - {"llmbench"}]
    problems += [f"wheel: contains {name} twice" for name in set(own) if own.count(name) > 1]
    problems += [f"wheel: {name} is missing" for name in sorted(expected() - set(own))]
    problems += [f"wheel: contains {name}, which is not in the repository" for name in sorted(set(own) - expected())]
    return problems


def check_sdist(path: Path) -> list[str]:
    """Return the problems of an sdist: its missing files."""
    with tarfile.open(path) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    wanted = {name.replace("llmbench/specs/", "specs/").replace("llmbench/kernels/", "kernels/") for name in expected()}
    wanted |= {"LICENSE", "README.md", "pyproject.toml"}
    return [f"sdist: {name} is missing" for name in sorted(wanted - names)]


def main() -> int:
    """Print the problems. Return 1 if there is a problem, else 0."""
    problems = []
    for path in map(Path, sys.argv[1:]):
        problems += check_wheel(path) if path.suffix == ".whl" else check_sdist(path)
        print(f"{path.name}: {path.stat().st_size / 1e6:.2f} MB")
    print(
        "\n".join(problems)
        or "the sdist and the wheel are complete, and the only top-level name of the wheel is llmbench"
    )
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
