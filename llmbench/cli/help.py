"""The layout of the help texts: groups of commands and of options, examples, and colours in a terminal."""

from __future__ import annotations

import inspect
import os
import re
import sys
from collections import Counter
from typing import Any

from typer.core import TyperCommand, TyperGroup

from llmbench.cli import GROUPS
from llmbench.errors import LLMBenchError

OUTPUT = "Output"
"""The heading above the options for the form of the answer. An option names its heading with `rich_help_panel`."""


SEVERAL = "`llmbench bench` compares several"
"""The beginning of the last sentence in the help of an option that takes one of several implementations."""


class _Helpful:
    """A command whose help text has sections. Subclasses also derive from a class of typer."""

    params: list[Any]
    help: str | None

    def get_help(self, ctx: Any) -> str:
        """Return the help text. It has colours if stdout is a terminal that shows colours."""
        text: str = super().get_help(ctx)  # type: ignore[misc]
        plain = ctx.color is False or os.environ.get("NO_COLOR") or os.environ.get("TERM") == "dumb"
        return text if plain or not sys.stdout.isatty() else coloured(text)

    def collect_usage_pieces(self, ctx: Any) -> list[str]:
        """Return the parts of the usage line. typer puts a required argument in braces, which look like a choice."""
        pieces: list[str] = super().collect_usage_pieces(ctx)  # type: ignore[misc]
        return [piece.strip("{}") for piece in pieces]

    def format_help_text(self, ctx: Any, formatter: Any) -> None:
        """Write the description, and then the examples: one per line, and never broken, so that they can be copied.

        A paragraph that begins with `\\b` has a name and its description in each line.
        """
        body, _, examples = inspect.cleandoc(self.help or "").partition("Examples:")
        with formatter.indentation():
            for paragraph in body.rstrip().split("\n\n"):
                formatter.write_paragraph()
                if paragraph.startswith("\b\n"):
                    formatter.write_dl([tuple(line.split("  ", 1)) for line in paragraph.splitlines()[1:]])
                else:
                    formatter.write_text(paragraph)
            lines = [line.strip() for line in examples.splitlines() if line.strip()]
            if lines:
                formatter.write("\n  Examples:\n" + "".join(f"    {line}\n" for line in lines))

    def format_options(self, ctx: Any, formatter: Any) -> None:
        """Write the arguments, the options, and last the options of the output."""
        sections: dict[str, list[tuple[str, str]]] = {"Arguments": [], "Options": []}
        for param in self.get_params(ctx):  # type: ignore[attr-defined]
            row = param.get_help_record(ctx)
            if row is not None:
                panel = getattr(param, "rich_help_panel", None)
                last = OUTPUT if param.name == "help" and len(sections) > 2 else "Options"
                section = "Arguments" if param.param_type_name == "argument" else panel or last
                sections.setdefault(section, []).append(row)
        sections[OUTPUT] = sections.pop(OUTPUT, [])
        for heading, rows in sections.items():
            if rows:
                with formatter.section(heading):
                    formatter.write_dl(rows)
        if isinstance(self, TyperGroup):
            self.format_commands(ctx, formatter)


class HelpfulCommand(_Helpful, TyperCommand):
    """A command that has no further commands."""

    def make_parser(self, ctx: Any) -> Any:
        """Return the parser of the command line. It refuses a second value for an option that takes one value."""
        parser: Any = super().make_parser(ctx)
        parse = parser.parse_args

        def parse_once(args: list[str]) -> Any:
            values, rest, order = parse(args=args)
            for parameter, count in Counter(order).items():
                if count > 1 and not (parameter.multiple or getattr(parameter, "is_flag", False)):
                    name = max(parameter.opts, key=len)
                    text = parameter.help or ""
                    sweeps, several = "A sweep:" in text, text.partition(SEVERAL)[2]
                    hint = "separate the values of a sweep by commas in one option" if sweeps else "keep one of them"
                    hint = f"keep one of them; {SEVERAL}{several.rstrip('.')}" if several else hint
                    raise LLMBenchError(f"{name} is given {count} times, but it can be given only once", hint=hint)
            return values, rest, order

        parser.parse_args = parse_once
        return parser


class HelpfulGroup(_Helpful, TyperGroup):
    """llmbench itself, or a command that has further commands."""

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        """Write the commands in groups, each with the whole first paragraph of its help text."""
        groups = GROUPS if ctx.parent is None else {"Commands": dict.fromkeys(self.commands, "")}
        for group, names in groups.items():
            commands = [(name, self.commands[name]) for name in names if name in self.commands]
            rows = [(name, _first_paragraph(command.help)) for name, command in commands if not command.hidden]
            if rows:
                with formatter.section(group):
                    formatter.write_dl(rows, col_max=20)


def _first_paragraph(text: str | None) -> str:
    return " ".join(inspect.cleandoc(text or "").partition("\n\n")[0].split())


def coloured(text: str) -> str:
    """Return a help text with bold headings, and with coloured options, commands and examples."""
    for pattern, colour in _COLOURS.items():
        text = re.sub(pattern, f"\\1\x1b[{colour}m\\2\x1b[0m", text, flags=re.MULTILINE)
    return text


_COLOURS = {
    r"^( {0,2})(Usage:|[A-Z][a-z ]*:$)": 1,  # bold headings
    r"^( {4})(llmbench .*)$": 32,  # green examples
    r"^( {2})((?:-|\[?[A-Z]{2,}|[a-z][a-z-]*(?=  ))(?:\S| (?! ))*(?=  |$))": 36,  # options, arguments, commands in cyan
}
"""The colour of the second group of each pattern, as a number of an escape sequence."""
