"""Hints on usage errors: the option that the user may mean, and the command whose help says more."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from importlib import import_module
from typing import Any

import typer

from llmbench.cli import COMMANDS
from llmbench.cli.completion import TABLE
from llmbench.errors import MOST_CHARACTERS, suggestion
from llmbench.spec.base import word_list

OTHER_NAMES: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("serve serving inference infer", ("--phase inference", "--phase decode")),
    ("train training", ("--phase train",)),
    ("prefill", ("--phase prefill",)),
    ("decode generate", ("--phase decode", "--phase inference")),
    ("gpu hardware accelerator", ("--device h100",)),
    ("gpus num-gpus n-gpus world-size nodes", ("--layout dp={8},zero=3|tp={8}", "--device h100")),
    ("tp tensor-parallel-size tensor-parallel", ("--layout tp={4}",)),
    ("pp pipeline-parallel-size pipeline-parallel", ("--layout pp={4}",)),
    ("dp data-parallel-size data-parallel", ("--layout dp={4}",)),
    ("ep expert-parallel", ("--layout ep={4},dp={4}",)),
    ("cp context-parallel", ("--layout cp={4}",)),
    ("zero fsdp", ("--layout dp=8,zero={3}",)),
    (
        "context context-length ctx ctx-len length seq seq-len seqlen seq-length sequence-length",
        ("--seq {8k}", "--context {8k}"),
    ),
    ("parameters size model-size", ("--params {7b}",)),
    ("max-model-len max-seq-len tokens prompt", ("--seq {8k}",)),
    ("batch-size bs mbs micro-batch-size sequences users", ("--batch {8}", "--users {8}")),
    ("dtype quant quantization quantize format weight-dtype", ("--precision bf16", "--kv-dtype fp8", "--dtype bf16")),
    ("cache-dtype kv-cache-dtype kv", ("--kv-dtype fp8",)),
    ("checkpointing activation-checkpointing gradient-checkpointing checkpoint", ("--recompute full",)),
    ("json", ("--format json",)),
    ("csv", ("--format csv",)),
    ("markdown md", ("--format markdown",)),
    ("file save out", ("--output FILE",)),
    ("impl implementation backend", ("--impl sdpa",)),
    ("override param", ("--set KEY=VALUE",)),
    ("data dataset corpus text", ("--data FILE", "--text FILE")),
    ("positions encodings position-encodings", ("--methods rope,alibi",)),
)
"""Words that users take for an option, and what they can write instead. A hint gives the first that the command has.

A number in braces is an example. If the user gave a number, the hint has the user's number. `|` separates examples.
"""

MOST_COMMANDS = 4
"""The largest number of commands that a hint on an option names."""

OTHER_COMMANDS: tuple[tuple[str, str], ...] = (
    ("list ls models catalog catalogue search", "specs list"),
    ("show info describe inspect cat", "specs show"),
    ("devices gpus hardware", "specs list --devices"),
    ("formats", "specs list --formats"),
    ("import convert", "specs import"),
    ("trace graph build load", "model MODEL --trace"),
    ("explain formula formulas", "params MODEL --explain"),
    ("size sizes count parameters weights", "params"),
    ("estimate mem vram ram footprint", "memory"),
    ("flop compute macs", "flops"),
    ("kv cache kv-cache", "kvcache"),
    ("serve serving deploy capacity plan", "fit"),
    ("utilization utilisation hfu throughput", "mfu"),
    ("benchmark run time speed latency", "bench"),
    ("prof", "profile"),
    ("example examples tutorial walkthrough", "worked"),
    ("exercises quiz question questions homework grade", "exercise list"),
    ("design recommend advise architecture", "choose"),
    ("kernel triton", "kernels list"),
    ("version", "--version"),
    ("help llmbench", "--help"),
    ("completion", "--show-completion bash"),
)
"""Words that users take for a command, and what they can write after `llmbench` instead."""


def usage_error(problem: Any, arguments: list[str], application: typer.Typer) -> tuple[str, str]:
    """Return the message and the hint of a usage error of typer.

    application: the commands that were built for `arguments`.
    """
    message = problem.format_message()
    message = message if len(message) <= MOST_CHARACTERS else f"{message[:MOST_CHARACTERS]}…"
    lists = "lists all commands" if message.startswith("No such command '") else "shows all arguments and options"
    hint = f"`{_command_path(problem, arguments)} --help` {lists}"
    lacking = re.match(r"Option '([\w-]+)' requires an argument", message)
    if lacking is not None and (needed := _needed(lacking[1], problem, arguments, application)):
        return message, f"{needed}\n{hint}"
    command = re.match(r"No such command '(.*?)'\.", message)
    if command is not None:
        near = _other_command(command[1], getattr(problem, "ctx", None))
        return command[0], (f"did you mean `{near}`? " if near else "") + hint
    choice = re.search(r"'([^']*)' is not one of ('.*')", message)
    if choice is not None:
        near = suggestion(choice[1], re.findall(r"'([^']*)'", choice[2]))
        return message, (f"did you mean `{near}`? " if near else "") + hint
    message = re.sub(r"is not a valid (float|int(eger)?)( range)?\.$", "is not a number", message)
    message = re.sub(r"is not in the range x>=(\S+)\.$", r"is not at least \1", message)
    context = getattr(problem, "ctx", None)
    if context is not None and message.startswith("No such option: -"):
        option = message.split()[3]
        known = {name: param for param in context.command.params for name in param.opts}
        word, _, value = option.lstrip("-").partition("=")
        if option in arguments[:-1]:
            value = arguments[arguments.index(option) + 1]
        near = _meant(word.lower().replace("_", "-"), value, known)
        if near:
            return f"no option {option}", f"did you mean {near}? {hint}"
        name = option.partition("=")[0]
        elsewhere = [f"`{command}`" for command in commands_with(name)] if name.startswith("--") else []
        if elsewhere:
            more = [f"{len(elsewhere) - MOST_COMMANDS} more commands"] if len(elsewhere) > MOST_COMMANDS + 1 else []
            listed = elsewhere[:MOST_COMMANDS] if more else elsewhere
            return f"no option {option}", f"`{name}` is an option of {word_list([*listed, *more])}; {hint}"
        return f"no option {option}", hint
    return message, hint


def commands_with(option: str) -> list[str]:
    """Return the names of the commands that have an option, such as `memory` and `specs list`."""
    with open(TABLE, encoding="utf-8") as file:
        tree: dict[str, Any] = json.load(file)

    def found(node: dict[str, Any], path: tuple[str, ...]) -> Iterator[str]:
        if path and option in node["options"]:
            yield " ".join(path)
        for name, inner in node["commands"].items():
            yield from found(inner, (*path, name))

    return list(found(tree, ()))


def _needed(option: str, problem: Any, arguments: list[str], application: typer.Typer) -> str | None:
    """Return the help of an option that lacks its value: what the value is, with an example."""
    command: Any = typer.main.get_command(application)
    for word in _command_path(problem, arguments).split()[1:]:
        command = command.commands[word]
    found = next((param for param in command.params if option in param.opts), None)
    return None if found is None else f"`{option} {found.metavar or 'VALUE'}`: {found.help}"


def _other_command(word: str, context: Any) -> str | None:
    """Return the command line that the user may mean with a command that llmbench lacks."""
    if context is None or context.parent is not None:
        near = suggestion(word, [] if context is None else context.command.commands)
        return None if near is None else f"{context.command_path} {near}"
    for words, text in OTHER_COMMANDS:
        if word.lower() in words.split():
            return f"llmbench {text}"
    near = suggestion(word, [*COMMANDS, *(name for words, _ in OTHER_COMMANDS for name in words.split())])
    return near and (f"llmbench {near}" if near in COMMANDS else _other_command(near, context))


def _meant(word: str, given: str, known: dict[str, Any]) -> str | None:
    """Return what the user may mean with an option that the command lacks.

    given: the value of that option, or any text. known: the options of the command.
    """
    number = given if re.fullmatch(r"\d{1,9}[kKmM]?", given) else None
    for form in next((texts for words, texts in OTHER_NAMES if word in words.split()), ()):
        text = re.sub(r"\{(\w+)\}", number or r"\1", form)
        option, value = text.split()
        choices = getattr(known[option].type, "choices", None) if option in known else ()
        if choices is None:
            examples = " or ".join(f"`{option} {example}`" for example in value.split("|"))
            return f"`{option}`, for example {examples}"
        if value in choices:
            return f"`{text}`"
    if commands_with(f"--{word}"):
        return None  # the hint names these commands, and a similar option of this command is another one
    near = suggestion(word, [name.lstrip("-") for name in known if name.startswith("--")])
    return None if near is None else f"`--{near}`"


def _command_path(problem: Any, arguments: list[str]) -> str:
    """Return the name of the command with the error. An error of typer's parser has no context: the words name it."""
    context = getattr(problem, "ctx", None)
    if context is not None:
        return str(context.command_path)
    words = [argument for argument in arguments if not argument.startswith("-")]
    if not words or words[0] not in COMMANDS:
        return "llmbench"
    command = import_module(COMMANDS[words[0]]).command
    inner = [entry.name for entry in command.registered_commands] if isinstance(command, typer.Typer) else []
    return " ".join(["llmbench", words[0], *(word for word in words[1:2] if word in inner)])
