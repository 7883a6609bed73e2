"""Write the tables of JSON fields into docs/guides/read-the-json.md, between the markers of that page.

    python tools/json_reference.py            # write the tables
    python tools/json_reference.py --check    # compare; exit 1 if a table is out of date

A marker names a module of llmbench.answers or llmbench.cli and a list of fields in that module:
`<!-- fields: params FIELDS -->`, `<!-- fields: kernels.check FUZZ -->`.
"""

from __future__ import annotations

import re
import sys
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

from llmbench.answers.about import MODEL_FIELDS
from llmbench.report.fields import Field

TARGET = Path(__file__).parent.parent / "docs" / "guides" / "read-the-json.md"
MARKED = re.compile(r"(<!-- fields: ([\w.]+) (\w+) -->\n).*?(<!-- end -->)", re.DOTALL)


def reference() -> str:
    """Return the text of the page with up-to-date tables."""
    return MARKED.sub(_table, TARGET.read_text(encoding="utf-8"))


def _table(match: re.Match[str]) -> str:
    package = "answers" if find_spec(f"llmbench.answers.{match[2].split('.')[0]}") else "cli"
    fields: tuple[Field[object], ...] = getattr(import_module(f"llmbench.{package}.{match[2]}"), match[3])
    # The fields of a model have their own table, so other tables leave them out.
    of_model = [field.name for field in MODEL_FIELDS]
    if match[3] != "MODEL_FIELDS" and [field.name for field in fields[: len(of_model)]] == of_model:
        fields = fields[len(of_model) :]
    lines = ["| field | content |", "|---|---|"]
    for field in fields:
        if field.in_json:
            assert field.description, f"{match[2]}.{match[3]}: {field.name} has no description"
            lines.append(f"| `{field.name}` | {field.description} |")
    return match[1] + "\n".join([*lines, match[4]])


def main() -> int:
    """Write the tables. With `--check`, only compare them, and return 1 if a table is out of date."""
    text = reference()
    if "--check" in sys.argv[1:]:
        if TARGET.read_text(encoding="utf-8") == text:
            return 0
        print(f"{TARGET} is out of date: run python tools/json_reference.py", file=sys.stderr)
        return 1
    TARGET.write_text(text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
