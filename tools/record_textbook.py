"""Record the trainings that decide claims of the textbook, in llmbench/textbook/runs/.

    python tools/record_textbook.py                          # list the recorded runs with their commands
    python tools/record_textbook.py NAME...                  # run these commands again, and replace their records
    python tools/record_textbook.py NAME --command COMMAND   # record a new run, or another command for this name
    python tools/record_textbook.py NAME --answer FILE       # record an answer of the command that FILE has as JSON

A training with one thread gives the same losses in each run of one version of torch on one kind of CPU.
"""

from __future__ import annotations

import argparse
import json
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec

from llmbench.learn.data import corpus
from llmbench.learn.settings import Settings
from llmbench.textbook.recorded import Run, Text, names, recorded

FOLDER = Path(__file__).parent.parent / "llmbench" / "textbook" / "runs"
MACHINE = ("os", "cpu", "threads", "python", "torch")
"""The fields of an environment that a record keeps."""
KEPT = {
    "extrapolate": ("method", "length", "loss", "change", "low", "high", "verdict"),
    "dynamics": ("arm", "layers", "lr", "seed", "loss", "losses"),
    "ablate": ("step", "about", "parameters", "loss", "losses", "change", "low", "high", "p", "verdict"),
}
"""The fields of the rows that a record keeps, by command."""
ROWS = {"extrapolate": "scores", "dynamics": "trainings", "ablate": "steps"}
"""The key of the rows in the JSON of each command."""
COURSES: dict[str, Callable[[list[float]], float]] = {"normalised_entropy": min, "qk_rank": min, "condensation": max}
"""The probes of `dynamics` that a record keeps, and which of the values of all layers and heads."""


def course(probes: dict[str, Any], name: str) -> list[tuple[int, float]]:
    """Return the observed steps, each with the smallest or largest value of a probe over all layers and heads."""
    found = []
    for step, seen in probes.items():
        values = [value for layer in seen[name] for value in (layer if isinstance(layer, list) else [layer])]
        found.append((int(step), COURSES[name]([value for value in values if value is not None])))
    return found


def run_of(command: str, answer: dict[str, Any]) -> Run:
    """Return the record of a command and its answer in JSON."""
    kind = shlex.split(command)[1]
    text = corpus(answer["inputs"]["data"])
    settings = msgspec.convert(answer["inputs"]["settings"], Settings)
    rows = []
    for row in answer[ROWS[kind]]:
        kept = {name: row[name] for name in KEPT[kind]}
        if kind == "dynamics":
            kept["courses"] = {name: course(row["probes"], name) for name in COURSES}
        rows.append(kept)
    environment = answer["environment"]
    return Run(
        command=command,
        llmbench=environment["llmbench"],
        machine={name: environment[name] for name in MACHINE},
        text=Text(name=text.name, sha256=text.train_sha256(), unigram=text.unigram),
        settings=msgspec.to_builtins(settings),
        rows=tuple(rows),
    )


def text_of(run: Run) -> str:
    """Return the JSON of a record, with one line for each field and each row."""
    fields = {name: json.dumps(value, ensure_ascii=False) for name, value in msgspec.to_builtins(run).items()}
    fields["rows"] = "[\n" + ",\n".join(f"  {json.dumps(row, ensure_ascii=False)}" for row in run.rows) + "\n ]"
    return "{\n" + ",\n".join(f' "{name}": {value}' for name, value in fields.items()) + "\n}\n"


def answer_of(command: str) -> dict[str, Any]:
    """Run a command of llmbench, and return its answer in JSON."""
    with tempfile.TemporaryDirectory() as folder:
        target = Path(folder) / "answer.json"
        words = [*shlex.split(command)[1:], "--format", "json", "--output", str(target)]
        subprocess.run([sys.executable, "-m", "llmbench", *words], check=True)
        answer: dict[str, Any] = json.loads(target.read_bytes())
        return answer


def main() -> int:
    """Record the runs that the command line names."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", metavar="NAME", nargs="*")
    parser.add_argument("--command", help="the command of the run; default: that of its record")
    parser.add_argument("--answer", type=Path, metavar="FILE", help="the answer of the command, in JSON")
    asked = parser.parse_args()
    if not asked.names:
        for name in names():
            print(f"{name:<16}{recorded(name).command}")
        return 0
    if (asked.command or asked.answer) and len(asked.names) > 1:
        parser.error("--command and --answer take one NAME")
    for name in asked.names:
        command = asked.command or recorded(name).command
        answer = json.loads(asked.answer.read_bytes()) if asked.answer else answer_of(command)
        (FOLDER / f"{name}.json").write_text(text_of(run_of(command, answer)), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
