"""Finds a spec by the text that a user types: the name or an alias of a bundled model or device, a TOML file, a
config.json or its folder, or `hf:organisation/name`.

Names are compared without case, hyphens, dots and underscores, so `llama-2-7b` and `LLaMA2_7B` are `llama2-7b`.
"""

from __future__ import annotations

import tomllib
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from llmbench.errors import CannotRunError, LLMBenchError, SpecError, UnknownNameError, suggestion
from llmbench.spec.files import parse_spec, read_spec
from llmbench.spec.model import ModelSpec

if TYPE_CHECKING:
    from llmbench.spec.device import DeviceSpec

SPECS = Path(__file__).parent.parent / "specs"
"""The folder of the bundled specs. `importlib.resources` is avoided, because its import takes a tenth of the start time
of a command."""

__all__ = ["bundled_devices", "bundled_models", "find_device", "find_model", "load_bundled", "load_device"]


def find_model(text: str) -> ModelSpec:
    """Return the spec that `text` names.

    Raises UnknownNameError for an unknown name, with the nearest name as hint. Raises SpecError for an invalid file,
    and UnsupportedError for a config of an unknown model type.
    """
    if text.startswith("hf:"):
        return _from_hub(text.removeprefix("hf:"))
    path = Path(text)
    if text.endswith((".toml", ".json")) or "/" in text or path.is_dir():
        if path.suffix == ".toml" and path.is_file():
            return read_spec(path)
        if path.exists():
            from llmbench.spec.huggingface import load_config

            return load_config(path)
        if "/" not in text or path.suffix in (".toml", ".json") or text.startswith((".", "/", "~")):
            raise UnknownNameError(f"file `{text}` not found")
    names = bundled_models()
    name = _lookup(text, names, "models")
    if name is None:
        near = suggestion(_plain(text), [_plain(known) for known in names])
        guess = next((known for known in names if _plain(known) == near), None)
        raise UnknownNameError(
            f"spec `{text[:80]}` not found",
            hint=(f"did you mean `{guess}`? " if guess else "") + "`llmbench specs list` shows all models",
        )
    return load_bundled(name)


def find_device(text: str) -> DeviceSpec:
    """Return the bundled device with this name or alias. Raises UnknownNameError, with the nearest name as hint."""
    names = bundled_devices()
    name = _lookup(text, names, "devices")
    if name is None:
        near = suggestion(text, names)
        raise UnknownNameError(
            f"device `{text[:80]}` not found",
            hint=(f"did you mean `{near}`? " if near else "") + "`llmbench specs list --devices` shows all devices",
        )
    return load_device(name)


@lru_cache(maxsize=1)
def bundled_models() -> tuple[str, ...]:
    """Names of the bundled models, sorted."""
    return _stems("models")


@lru_cache(maxsize=1)
def bundled_devices() -> tuple[str, ...]:
    """Names of the bundled devices, sorted."""
    return _stems("devices")


def load_bundled(name: str) -> ModelSpec:
    """Return the bundled model with exactly this name."""
    return parse_spec(_text("models", name), f"spec {name}")


@lru_cache(maxsize=64)
def load_device(name: str) -> DeviceSpec:
    """Return the bundled device with exactly this name."""
    from llmbench.spec.device import DeviceSpec  # imported here, because most commands need no device

    return msgspec.toml.decode(_text("devices", name), type=DeviceSpec)


def device_memories() -> list[tuple[str, int]]:
    """Return the name and the memory in bytes of each bundled device, smallest memory first.

    The memory is the total that the driver reports, or the datasheet's value if the driver's is unknown. Boards with
    two GPUs are skipped.
    """
    memories = []
    for name in bundled_devices():
        head = _head("devices", name)
        figure = head.get("usable_memory_bytes") or head.get("memory_bytes")
        if figure is not None and head.get("nvml_names"):
            memories.append((name, int(figure["value"])))
    return sorted(memories, key=lambda device: (device[1], device[0]))


def device_text(name: str) -> str:
    """Return the text of the TOML file of a bundled device."""
    return _text("devices", name)


def _text(kind: str, name: str) -> str:
    return (SPECS / kind / f"{name}.toml").read_text(encoding="utf-8")


def _head(kind: str, name: str) -> dict[str, Any]:
    """Parse the first paragraph of a spec file: the names, and the memory of a device.

    A search over all files needs only these fields, and is faster if it does not parse the rest.
    """
    return tomllib.loads(_text(kind, name).partition("\n\n")[0])


def _stems(kind: str) -> tuple[str, ...]:
    return tuple(sorted(file.stem for file in (SPECS / kind).glob("*.toml")))


def _plain(name: str) -> str:
    return name.lower().replace("-", "").replace("_", "").replace(".", "").replace(" ", "")


def _lookup(text: str, names: tuple[str, ...], kind: str) -> str | None:
    if text in names:
        return text
    wanted = _plain(text)
    for name in names:
        if _plain(name) == wanted:
            return name
    for name in names:
        if any(_plain(alias) == wanted for alias in _head(kind, name).get("aliases", ())):
            return name
    return None


def _from_hub(repository: str) -> ModelSpec:
    """Read the config.json of a hub repository. huggingface_hub downloads the file or takes it from the local cache."""
    from llmbench.spec.huggingface import load_config

    if repository.count("/") != 1:
        raise SpecError(f"`hf:{repository[:80]}` does not have the form hf:organisation/name")
    try:
        from huggingface_hub import hf_hub_download
    except ImportError:
        raise CannotRunError(
            "reading from the Hugging Face hub needs the extra `hf`", hint="pip install 'llmbench[hf]'"
        ) from None
    import logging

    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)  # otherwise it logs every retry
    try:
        file = hf_hub_download(repository, "config.json")
    except LLMBenchError:
        raise
    except Exception as problem:  # huggingface_hub raises errors of many classes of its HTTP library
        reason = str(problem).strip().splitlines() or [type(problem).__name__]
        raise CannotRunError(
            f"cannot fetch config.json of {repository}: {reason[0][:200]}",
            hint="check the name and the network; gated models need `hf auth login`",
        ) from None
    return load_config(Path(file), name=repository.split("/")[1])
