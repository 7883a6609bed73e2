"""Write docs/commands.md from the help texts of the commands, and the table from which shells complete words.

python tools/command_reference.py            # write the page and the table
python tools/command_reference.py --check    # compare; exit 1 if one of them is out of date
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

from typer.main import get_command

from llmbench import textbook
from llmbench.bench.experiments import EXPERIMENTS
from llmbench.bench.extra_candidates import CANDIDATES
from llmbench.bench.pieces import PIECES
from llmbench.cli import completion
from llmbench.cli.application import build
from llmbench.kernels.registry import KERNELS
from llmbench.learn.exercises import EXERCISES
from llmbench.learn.worked import TOPICS
from llmbench.model.implementations import IMPLEMENTATIONS
from llmbench.sizing.dtypes import KVDType

TARGET = Path(__file__).parent.parent / "docs" / "commands.md"
TABLE = Path(completion.TABLE)
WIDTH = 100

HEAD = """\
# Commands

<!-- Written by tools/command_reference.py from the help texts. Do not edit; run it again. -->

[Read the JSON](guides/read-the-json.md) describes the JSON of each command.

Data goes to stdout. Errors, hints and progress go to stderr. The exit code is for scripts:

| exit code | meaning | commands |
|---|---|---|
| 0 | done | all |
| 1 | the model fits on none of the devices that `--device` names | `memory` |
| 1 | the model fits in none of the cases | `fit` |
| 1 | a row has a larger error than `--bound`, or no row could be compared | `validate` |
| 1 | the second file has a regression | `diff` |
| 1 | a row is INCORRECT or FAILED | `profile`, `bench`, `kernels bench` |
| 1 | a kernel exceeds its error budget, or its compiled code has a fault | `kernels check`, `kernels inspect` |
| 1 | an answer or a function is wrong | `exercise check` |
| 1 | logits are not finite | `model` |
| 1 | the loss or a gradient becomes NaN or infinite | `train` |
| 2 | wrong usage or input | all |
| 3 | cannot run here: no GPU, a missing extra, no network, too little memory | all |
| 101 | a bug of llmbench | all |
| 130 | stopped by Ctrl-C | all |
"""


def commands() -> Iterator[tuple[str, Any, str]]:
    """Return the full name, the object and the help text of llmbench and of each command, in the order of the help."""
    yield from _walk(get_command(build([])), "llmbench", None)


def _walk(command: Any, name: str, parent: Any) -> Iterator[tuple[str, Any, str]]:
    settings = {"terminal_width": WIDTH, "color": False, "resilient_parsing": True}
    context = command.make_context(name.rpartition(" ")[2], [], parent=parent, **settings)
    text = "\n".join(line.rstrip() for line in command.get_help(context).strip().splitlines())
    yield name, command, text
    for word, inner in getattr(command, "commands", {}).items():
        yield from _walk(inner, f"{name} {word}", context)


def reference() -> str:
    """Return the text of the whole page."""
    parts = [HEAD]
    for name, _, text in commands():
        depth = "##" if name.count(" ") < 2 else "###"
        parts.append(f"{depth} {name}\n\n```text\n{text}\n```\n")
    return "\n".join(parts)


NAMES: dict[str, list[str]] = {
    "MODEL": ["<models>"],
    "PIECE": [*PIECES],
    "EXPERIMENT": [*EXPERIMENTS],
    "DEVICE": ["auto", "cpu", "cuda"],
    "model device": ["auto", "cpu", "cuda", "meta"],
    "memory device": ["<devices>"],
    "choose device": ["<devices>"],
    "fit device": ["<devices>"],
    "mfu device": ["<devices>"],
    "ENGINE": ["<engines>"],
    "FORMAT": ["<formats>"],
    "fit kv_dtype": [*get_args(KVDType)],
    "model impl": [*IMPLEMENTATIONS],
    "profile impl": [*CANDIDATES],
    "kernels bench names": [*KERNELS],
    "kernels check names": [*KERNELS],
    "kernels inspect names": [*KERNELS],
    "specs show name": ["<models>", "<devices>"],
    "worked topic": [*TOPICS],
    "textbook topic": [*textbook.TOPICS],
    "exercise show name": [*EXERCISES],
    "exercise check target": [*EXERCISES],
}
"""The names that a shell completes for a parameter, by its metavar, or by its command and its name."""


def table() -> str:
    """Return the table from which `llmbench.cli.completion` completes words."""
    return json.dumps(_entry(get_command(build([])), ""), ensure_ascii=False, indent=0) + "\n"


def _entry(command: Any, name: str) -> dict[str, Any]:
    """Return the options, the arguments and the commands of a command."""
    context = command.make_context(name or "llmbench", [], resilient_parsing=True)
    options, arguments = {}, []
    for parameter in command.get_params(context):
        metavar = (parameter.metavar or "").strip("[].")
        names = NAMES.get(f"{name} {parameter.name}", NAMES.get(metavar))
        parser = getattr(parameter.type, "func", None)  # of an option that takes several choices
        values = names or getattr(parameter.type, "choices", getattr(parser, "choices", None))
        if parameter.param_type_name == "argument":
            arguments.append({"values": values, "several": parameter.nargs != 1})
            continue
        flag = parameter.is_flag or parameter.name == "help"
        about = {"help": _sentence(parameter.help), "values": [] if flag else values}
        options |= dict.fromkeys(sorted(parameter.opts), about)  # the names of --help have no order
    inner = getattr(command, "commands", {})
    return {
        "help": _sentence(command.help),
        "options": options,
        "arguments": arguments,
        "commands": {word: _entry(inner[word], f"{name} {word}".strip()) for word in inner},
    }


def _sentence(text: str | None) -> str:
    """Return the first sentence of a help text."""
    return " ".join((text or "").partition("\n\n")[0].split()).partition(". ")[0].rstrip(".:")


def main() -> int:
    """Write the page and the table. With `--check`, only compare, and return 1 if one of them is out of date."""
    stale = 0
    for path, text in ((TARGET, reference()), (TABLE, table())):
        if "--check" not in sys.argv[1:]:
            path.write_text(text, encoding="utf-8")
        elif not path.exists() or path.read_text(encoding="utf-8") != text:
            print(f"{path} is out of date: run python tools/command_reference.py", file=sys.stderr)
            stale = 1
    return stale


if __name__ == "__main__":
    sys.exit(main())
