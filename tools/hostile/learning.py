"""Damaged runs of `train`, damaged texts and damaged tokenizers, for the commands that read them."""

from __future__ import annotations

import atexit
import json
import os
import random
import shutil
import tempfile
from pathlib import Path
from typing import Any

from fuzz_readers import as_json, broken
from hostile.answers import EVIL, FORMATS, WORDS, Attempt, Problems, inside, named
from hostile.inputs import LLAMA, damaged, weights

TEXT = "the quick brown fox jumps over the lazy dog. " * 60
SMALL = [
    *(
        "--set",
        "num_hidden_layers=1",
        "--set",
        "hidden_size=16",
        "--set",
        "head_dim=4",
        "--set",
        "intermediate_size=16",
    ),
    *("--seq", "8", "--batch", "2", "--warmup", "1", "--setting", "validation_batches=1"),
]
"""The options of the smallest training."""


def trained() -> Path:
    """Return the folder of a run that stopped after two of its four steps, beside its text."""
    place = Path(tempfile.mkdtemp(prefix="hostile-run-"))
    atexit.register(shutil.rmtree, place, ignore_errors=True)
    (place / "text").write_text(TEXT)
    command = ["train", "nanogpt-cpu", "--data", str(place / "text"), "--steps", "4", "--stop-at", "2", *SMALL]
    answer = inside([*command, "-o", str(place / "run")])
    assert answer.code == 0, answer
    return place / "run"


def other_bytes(content: bytes, rng: random.Random) -> bytes:
    """Return a file with other bytes, and a safetensors file with another header."""
    if not content.startswith(b"{") and rng.random() < 0.6:
        length = int.from_bytes(content[:8], "little")
        header = broken(as_json(damaged(json.loads(content[8 : 8 + length]), rng)), rng)
        size = rng.choice([len(header)] * 9 + [0, 2**63, len(header) + 1])
        return size.to_bytes(8, "little") + header + content[8 + length :]
    at = rng.randrange(len(content))
    return rng.choice([content[:at], content[:at] + rng.randbytes(4) + content[at + 4 :], content + b"\0", b""])


def damage(path: Path, rng: random.Random) -> None:
    """Damage a file of a run, or put something else in its place."""
    content = path.read_bytes()
    match rng.randrange(8):
        case 0:
            path.unlink()
            path.symlink_to(rng.choice(["/dev/zero", "/dev/null", "/proc/self/mem", "/etc/passwd", "..", path.name]))
        case 1:
            path.unlink()
            rng.choice([os.mkfifo, os.mkdir, Path.touch])(path)
        case 2:
            path.write_bytes(other_bytes(content, rng))
        case _ if path.suffix == ".safetensors":
            path.write_bytes(other_bytes(content, rng))
        case _ if path.suffix == ".jsonl":
            lines = [broken(as_json(damaged(json.loads(line), rng)), rng) for line in content.splitlines()]
            path.write_bytes(b"\n".join(rng.choices(lines, k=rng.randint(0, 2 * len(lines)))) + b"\n")
        case _:
            path.write_bytes(broken(as_json(damaged(json.loads(content), rng)), rng))


def commands(run: Path, rng: random.Random) -> list[str]:
    """Return a command that reads a run."""
    text, output = str(run.parent / "text"), ["--format", rng.choice(FORMATS)]
    step = rng.choice([run, *sorted(path for path in run.iterdir() if path.is_dir())])
    return rng.choice(
        [
            ["evaluate", str(step), "--text", text, "--seq", "8", *output],
            ["generate", str(step), "--prompt", rng.choice(["the ", "", EVIL, *WORDS]), "--tokens", "3", *output],
            ["train", "--resume", str(run), *output],
        ]
    )


def runs() -> Attempt:
    """Damaged and foreign files in the folder of a run, for `evaluate`, `generate` and `train --resume`."""
    whole = trained()

    def attempt(rng: random.Random, folder: Path) -> Problems:
        run = folder / "run"
        shutil.copytree(whole, run)
        shutil.copy(whole.parent / "text", folder / "text")
        files = sorted(path for path in run.rglob("*") if path.is_file())
        for path in rng.sample(files, rng.choice([1, 1, 1, 2])):
            damage(path, rng)
        command = commands(run, rng)
        return named(command, inside(command))

    return attempt


def texts() -> Attempt:
    """Damaged texts, tokens and tokenizers, for `evaluate`, `generate` and `train`."""
    run = trained()
    tokenizer: dict[str, Any] = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [{"id": 0, "content": "<s>", "special": True, "single_word": False, "lstrip": False}],
        "normalizer": {"type": "Sequence", "normalizers": [{"type": "NFC"}, {"type": "Lowercase"}]},
        "pre_tokenizer": {"type": "Whitespace"},
        "post_processor": {
            "type": "TemplateProcessing",
            "single": [{"SpecialToken": {"id": "<s>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
            "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 0}}],
            "special_tokens": {"<s>": {"id": "<s>", "ids": [0], "tokens": ["<s>"]}},
        },
        "decoder": {"type": "Fuse"},
        "model": {
            "type": "WordLevel",
            "unk_token": "<s>",
            "vocab": {"<s>": 0, **{word: number for number, word in enumerate(sorted(set(TEXT.split())), 1)}},
        },
    }
    header, size = weights()
    head = as_json(header)
    tensors = len(head).to_bytes(8, "little") + head + b"\0\0\0\x3d" * (size // 4)

    def attempt(rng: random.Random, folder: Path) -> Problems:
        text = folder / "text"
        text.write_bytes(
            rng.choice([TEXT.encode(), rng.randbytes(500), b"", b"x", b"\xff" * 99, EVIL.encode() * 9, b"\0" * 300])
        )
        if rng.random() < 0.2:
            text.unlink()
            text.symlink_to(rng.choice(["/dev/zero", "/proc/self/mem", "/dev/full", "text", "/"]))
        if rng.random() < 0.5:
            (folder / "tokens.json").write_bytes(broken(as_json(damaged([1, 2, 3] * 20, rng)), rng))
            tokens = ["--tokens", str(folder / "tokens.json")]
            command = ["evaluate", str(run), "--seq", "8", *rng.choice([["--text", str(text)], tokens])]
            if rng.random() < 0.3:
                command = ["train", "nanogpt-cpu", "--data", str(text), "--steps", "1", *SMALL]
            return named(command, inside(command))
        model = folder / "model"
        model.mkdir()
        (model / "config.json").write_bytes(as_json(LLAMA))
        (model / "model.safetensors").write_bytes(tensors)
        (model / "tokenizer.json").write_bytes(broken(as_json(damaged(tokenizer, rng)), rng))
        (model / "generation_config.json").write_bytes(broken(as_json(damaged({"eos_token_id": [1, 2]}, rng)), rng))
        ask = [["evaluate", str(model), "--text", str(text), "--seq", "8"], ["generate", str(model), "--prompt", "the"]]
        command = rng.choice([ask[0], [*ask[1], "--tokens", "3"]])
        return named(command, inside(command))

    return attempt
