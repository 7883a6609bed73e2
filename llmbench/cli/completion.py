"""Completion in bash, zsh and fish: the words that can follow at the cursor, and the script of each shell.

A shell starts a process for each Tab, so this module imports neither typer nor any other module of llmbench. It reads
`completion.json`, which `tools/command_reference.py` writes from the commands and their options.
"""

from __future__ import annotations

import json
import os
from typing import Any

FOLDER = os.path.dirname(os.path.abspath(__file__))
TABLE = os.path.join(FOLDER, "completion.json")
SPECS = os.path.join(os.path.dirname(FOLDER), "specs")

Words = dict[str, str]
"""Words, each with its description. The description can be empty."""


def complete(words: list[str], shell: str) -> list[str]:
    """Return the lines that the script of a shell reads. `words`: the words after `llmbench`, up to the cursor.

    The last word is incomplete. There is no line if the shell shall complete the name of a file.
    """
    chosen = candidates(words)
    match shell:
        case "zsh":
            return [name.replace(":", "\\:") + (f":{text}" if text else "") for name, text in chosen.items()]
        case "fish":
            return [f"{name}\t{text}" for name, text in chosen.items()]
        case _:
            return list(chosen)


def candidates(words: list[str]) -> Words:
    """Return the words that begin with the last of `words` and can stand in its place, with their descriptions."""
    # bash splits words at "=": --format=json is three words
    *before, last = [word for word in words[:-1] if word != "="] + [words[-1] if words and words[-1] != "=" else ""]
    with open(TABLE, encoding="utf-8") as file:
        node: dict[str, Any] = json.load(file)
    position, option = 0, ""
    for word in before:
        if option:
            option = ""
        elif word.startswith("-"):
            option = word if node["options"].get(word, {}).get("values", []) != [] else ""
        elif word in node["commands"]:
            node = node["commands"][word]
        else:
            position += 1
    name, equals, _ = last.partition("=")
    if option:
        chosen = _named(node["options"][option]["values"])
    elif equals and name in node["options"]:
        chosen = {f"{name}={value}": "" for value in _named(node["options"][name]["values"])}
    elif last.startswith("-"):
        chosen = {name: about["help"] for name, about in node["options"].items() if name.startswith("--")}
    elif node["commands"]:
        chosen = {name: inner["help"] for name, inner in node["commands"].items()}
    else:
        arguments = node["arguments"]
        several = bool(arguments) and arguments[-1]["several"]
        place = min(position, len(arguments) - 1) if several else position
        chosen = _named(arguments[place]["values"]) if place < len(arguments) else {}
    return {word: text for word, text in chosen.items() if word.startswith(last)}


def _named(values: list[str] | None) -> Words:
    """Return the values of an option or argument. `<models>` stands for the names of all files in specs/models.

    None stands for a free text or a file, for which there are no candidates.
    """
    names: Words = {}
    for value in values or ():
        if value.startswith("<"):
            folder = os.path.join(SPECS, value.strip("<>"))
            names |= dict.fromkeys(sorted(name[:-5] for name in os.listdir(folder) if name.endswith(".toml")), "")
        else:
            names[value] = ""
    return names


SCRIPTS = {
    "bash": r"""# Completion of llmbench in bash. Add this line to ~/.bashrc:
#   eval "$(llmbench --show-completion bash)"
_llmbench() {
    local IFS=$'\n'
    COMPREPLY=($(_LLMBENCH_COMPLETE=bash "$1" "${COMP_WORDS[@]:1:COMP_CWORD}" 2>/dev/null))
}
complete -o default -F _llmbench llmbench""",
    "zsh": r"""#compdef llmbench
# Completion of llmbench in zsh. Add this line to ~/.zshrc, after compinit:
#   eval "$(llmbench --show-completion zsh)"
_llmbench() {
    local -a names
    names=("${(@f)$(_LLMBENCH_COMPLETE=zsh "${words[1]}" "${(@Q)words[2,CURRENT]}" 2>/dev/null)}")
    if [[ -n "$names" ]]; then
        _describe -V 'llmbench' names
    else
        _files
    fi
}
compdef _llmbench llmbench""",
    "fish": r"""# Completion of llmbench in fish. Write it to a file once:
#   llmbench --show-completion fish > ~/.config/fish/completions/llmbench.fish
function __llmbench_complete
    set -l words (commandline -opc)
    set -l last (commandline -ct)
    set -l names (_LLMBENCH_COMPLETE=fish $words[1] $words[2..-1] "$last" 2>/dev/null | string match -v '')
    if set -q names[1]
        printf '%s\n' $names
    else
        __fish_complete_path "$last"
    end
end
complete -c llmbench -f -a '(__llmbench_complete)'""",
}
"""The script of each shell, which asks llmbench for candidates. It completes file names if there are none."""
