"""Hints on usage errors: the option that the user may mean, and the command whose help says more."""

from __future__ import annotations

import re
from importlib import import_module
from typing import Any

import typer

from llmbench.cli import COMMANDS
from llmbench.errors import MOST_CHARACTERS, suggestion

OTHER_NAMES: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("serve serving inference infer", ("--phase inference", "--phase decode")),
    ("train training", ("--phase train",)),
    ("prefill", ("--phase prefill",)),
    ("decode generate", ("--phase decode", "--phase inference")),
    ("gpu hardware accelerator", ("--device h100",)),
    ("gpus num-gpus n-gpus world-size nodes", ("--layout tp=4", "--device h100")),
    ("tp tensor-parallel-size tensor-parallel", ("--layout tp=4",)),
    ("pp pipeline-parallel-size pipeline-parallel", ("--layout pp=4",)),
    ("dp data-parallel-size data-parallel", ("--layout dp=4",)),
    ("ep expert-parallel", ("--layout ep=4,dp=4",)),
    ("cp context-parallel", ("--layout cp=4",)),
    ("zero fsdp", ("--layout dp=8,zero=3",)),
    ("context context-length ctx ctx-len length seq-len seqlen seq-length sequence-length", ("--seq 8k",)),
    ("max-model-len max-seq-len tokens prompt", ("--seq 8k",)),
    ("batch-size bs mbs micro-batch-size sequences users", ("--batch 8", "--users 8")),
    ("dtype quant quantization quantize format weight-dtype", ("--precision bf16", "--kv-dtype fp8", "--dtype bf16")),
    ("cache-dtype kv-cache-dtype kv", ("--kv-dtype fp8",)),
    ("checkpointing activation-checkpointing gradient-checkpointing checkpoint", ("--recompute full",)),
    ("json", ("--format json",)),
    ("csv", ("--format csv",)),
    ("markdown md", ("--format markdown",)),
    ("file save out", ("--output FILE",)),
    ("impl implementation backend", ("--impl sdpa",)),
    ("override param", ("--set KEY=VALUE",)),
)
"""Words that users take for an option, and what they can write instead. A hint gives the first that the command has."""


def usage_error(problem: Any, arguments: list[str]) -> tuple[str, str]:
    """Return the message and the hint of a usage error of typer."""
    message = problem.format_message()
    message = message if len(message) <= MOST_CHARACTERS else f"{message[:MOST_CHARACTERS]}…"
    lists = "lists all commands" if message.startswith("No such command '") else "shows all arguments and options"
    hint = f"`{_command_path(problem, arguments)} --help` {lists}"
    message = re.sub(r"is not a valid (float|int(eger)?)( range)?\.$", "is not a number", message)
    message = re.sub(r"is not in the range x>=(\S+)\.$", r"is not at least \1", message)
    context = getattr(problem, "ctx", None)
    if context is not None and message.startswith("No such option: -"):
        option = message.split()[3]
        known = {name: param for param in context.command.params for name in param.opts}
        near = _meant(option.lstrip("-").partition("=")[0].lower().replace("_", "-"), known)
        return f"no option {option}", (f"did you mean {near}? " if near else "") + hint
    return message, hint


def _meant(word: str, known: dict[str, Any]) -> str | None:
    """Return what the user may mean with an option that the command lacks. `known`: the options of the command."""
    for text in next((texts for words, texts in OTHER_NAMES if word in words.split()), ()):
        option, value = text.split()
        choices = getattr(known[option].type, "choices", None) if option in known else ()
        if choices is None:
            return f"`{option}`, for example `{text}`"
        if value in choices:
            return f"`{text}`"
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
