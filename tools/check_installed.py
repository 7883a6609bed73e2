"""Run every sizing command of an installed llmbench, in an environment with only its base dependencies.

    path/to/bin/python tools/check_installed.py path/to/bin/llmbench

Run this tool from a folder outside the repository, with the Python of that environment. The tool checks four facts:
torch, transformers and numpy are not installed, llmbench is imported from the environment, every command works in every
format, and the JSON is valid.
"""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import llmbench

CONFIG = {
    "model_type": "llama",
    "vocab_size": 32000,
    "hidden_size": 4096,
    "intermediate_size": 11008,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "tie_word_embeddings": False,
}
FORMATS = ("table", "json", "csv", "markdown")
COMMANDS = [
    "params llama2-7b",
    "params deepseek-v3 mixtral-8x7b",
    "params llama3-8b --by op --explain",
    "params config.json --set num_key_value_heads=8",
    "flops llama2-7b",
    "flops mixtral-8x7b --phase decode",
    "flops llama3-8b --phase train --recompute full",
    "kvcache",
    "kvcache deepseek-v3 --kv-dtype fp8",
    "memory llama2-7b",
    "memory llama3-70b --layout tp=8,sp,pp=4,dp=2,zero=1",
    "memory llama3-70b --phase inference --weights fp8 --layout tp=4",
    "compare gpt2-xl llama2-7b mistral-7b jamba-v0.1",
    "env",
    "specs list",
    "specs list --devices",
    "specs list --model-types",
    "specs check my-model.toml",
]


def run(program: str, command: str, *, code: int = 0) -> str:
    """Return the output of a command. If its exit code is not `code`, end this tool with the output of the command as
    the message."""
    done = subprocess.run([program, *command.split()], capture_output=True, text=True, check=False)
    if done.returncode != code or (not code and not done.stdout and "-o" not in command.split()):
        sys.exit(f"llmbench {command}: exit code {done.returncode}\n{done.stdout}{done.stderr}")
    return done.stdout


def main() -> None:
    """Run all commands and print the number of commands. End at the first problem."""
    program = sys.argv[1]
    for module in ("torch", "triton", "transformers", "numpy", "pydantic"):
        assert importlib.util.find_spec(module) is None, f"{module} is installed in this environment"
    assert "site-packages" in str(llmbench.__file__), (
        f"llmbench is not imported from this environment but from {llmbench.__file__}"
    )
    Path("config.json").write_text(json.dumps(CONFIG))
    run(program, "specs import config.json -o my-model.toml")
    for name in ("llama2-7b", "h100-sxm", "my-model.toml"):
        assert run(program, f"specs show {name}").startswith("name = ")
    for command in COMMANDS:
        for kind in FORMATS:
            text = run(program, f"{command} --format {kind}")
            if kind == "json":
                assert json.loads(text)["schema"].startswith("llmbench."), command
    total = json.loads(run(program, "params config.json --format json"))["models"][0]["parameters"]["total"]
    assert total == 6_738_415_616, total
    run(program, "params llama2-7b-no-such-model", code=2)
    run(program, "--version")
    print(f"ran {len(COMMANDS)} commands in {len(FORMATS)} formats without torch")


if __name__ == "__main__":
    main()
