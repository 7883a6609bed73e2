"""Write the list of model types into llmbench/spec/huggingface/families/__init__.py. The list names the model types
that each file of that folder reads.

    python tools/lineages.py            # write the list
    python tools/lineages.py --check    # compare; exit 1 if the list is out of date
"""

from __future__ import annotations

import re
import sys
import textwrap
from pathlib import Path

from llmbench.spec.huggingface.families import FAMILIES

TARGET = Path(__file__).parent.parent / "llmbench" / "spec" / "huggingface" / "families" / "__init__.py"
MARKED = re.compile(r"(The list is written by tools/lineages\.py::\n\n).*?(\"\"\"\n)", re.DOTALL)


def lineages() -> dict[str, list[str]]:
    """Return the model types that each file reads, sorted."""
    files: dict[str, list[str]] = {}
    for model_type, importer in FAMILIES.items():
        files.setdefault(importer.__module__.rpartition(".")[2], []).append(model_type)
    return {file: sorted(files[file], key=str.lower) for file in sorted(files)}


def listed() -> str:
    """Return the text of families/__init__.py with an up-to-date list."""
    files = lineages()
    width = max(map(len, files)) + 2
    lines = []
    for file, model_types in files.items():
        text = textwrap.wrap(" ".join(model_types), 116 - width, break_on_hyphens=False)
        lines += [f"    {name:<{width}}{part}" for name, part in zip([file, *[""] * len(text)], text, strict=False)]
    current = TARGET.read_text(encoding="utf-8")
    assert MARKED.search(current), f"{TARGET} has no marker for the list of model types"
    return MARKED.sub(lambda place: place[1] + "\n".join(lines) + "\n" + place[2], current)


def main() -> int:
    """Write the list. With `--check`, only compare it, and return 1 if it is out of date."""
    text = listed()
    if "--check" in sys.argv[1:]:
        if TARGET.read_text(encoding="utf-8") != text:
            print(f"{TARGET} is out of date: run python tools/lineages.py", file=sys.stderr)
            return 1
        return 0
    TARGET.write_text(text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
