"""Keep figures of the compiled kernels, so that the documentation can compare them before and after a change.

llmbench kernels inspect --shipped --format json -o FILE.json    # compile with the installed Triton
python tools/compiled_kernels.py FILE.json LABEL                 # write benchmarks/compiled/LABEL-triton-VERSION.csv

LABEL is `before` or `after`. tools/kernel_reference.py writes a table of the files into docs/kernel-configurations.md.
"""

from __future__ import annotations

import csv
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parent.parent / "benchmarks" / "compiled"
FIELDS = ("kernel", "function", "case", "configuration", "registers", "spilled_bytes", "waits", "limits")

HEAD = """
## The compiled code, before and after

The table shows the functions with asynchronous matrix products (`wgmma`) for sm_90 in bf16, as `kernels inspect` sees
them. `before` is the code of commit 7609f6e. `waits / products` gives, for each hot loop, the number of waits and the
number of matrix products in one turn. Products overlap only if there are few waits. `limited by` names the unit that
needs the most cycles. The files are in `benchmarks/compiled/`. tools/compiled_kernels.py writes them.

| function | shape | Triton | registers | spilled (B) | waits / products | limited by |
|---|---|---|---|---|---|---|
"""


def rows_of(inspection: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Return one row per shipped configuration in bf16 whose hot loops have asynchronous products."""
    for row in inspection["configurations"]:
        loops = [loop for loop in row["loops"] if loop["products"]]
        if row["shipped"] and row["dtype"] == "bfloat16" and loops:
            yield {
                "kernel": row["kernel"],
                "function": row["function"],
                "case": row["case"],
                "configuration": row["config"],
                "registers": row["registers"],
                "spilled_bytes": row["spilled_bytes"],
                "waits": " ".join(f"{loop['waits']}/{loop['products']}" for loop in loops),
                "limits": ", ".join(dict.fromkeys(loop["limit"] for loop in loops)),
            }


def comparison() -> str:
    """Return the section of the page: each function and shape with its figures before and after."""
    lines: dict[tuple[str, str, str], dict[str, dict[str, str]]] = {}
    for path in sorted(FOLDER.glob("*.csv")):
        label, _, version = path.stem.partition("-triton-")
        with path.open(encoding="utf-8", newline="") as file:
            for row in csv.DictReader(file):
                # A configuration with two passes launches a function twice.
                place = lines.setdefault((row["function"], row["case"], version), {})
                place.setdefault(label, row)
    return HEAD + "".join(_line(*key, figures) for key, figures in sorted(lines.items()))


def _line(function: str, case: str, version: str, rows: dict[str, dict[str, str]]) -> str:
    def change(name: str) -> str:
        before, after = (rows[label][name] if label in rows else "–" for label in ("before", "after"))
        return after if before == after else f"{before} → {after}"

    cells = (f"`{function}`", case, version, *map(change, ("registers", "spilled_bytes", "waits", "limits")))
    return "| " + " | ".join(cells) + " |\n"


def main() -> int:
    """Write the figures of an inspection to a file."""
    if len(sys.argv) != 3:
        print(__doc__, file=sys.stderr)
        return 2
    inspection = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    version = inspection["environment"]["triton"]
    with (FOLDER / f"{sys.argv[2]}-triton-{version}.csv").open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, FIELDS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows_of(inspection))
    return 0


if __name__ == "__main__":
    sys.exit(main())
