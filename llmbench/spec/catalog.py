"""The catalogue of specs. A user names a bundled model or its alias, a TOML file, a config.json or its folder, or
`hf:organisation/name`.

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
"""The folder of bundled files. importlib.resources is not used: its import takes a tenth of a command's start."""

__all__ = ["bundled_devices", "bundled_models", "find_device", "find_model", "load_bundled", "load_device"]


def find_model(text: str) -> ModelSpec:
    """The spec that `text` names. Raises UnknownNameError with the nearest name, SpecError or UnsupportedError."""
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
            raise UnknownNameError(f"no file `{text}`")
    names = bundled_models()
    name = _lookup(text, names, "models")
    if name is None:
        near = suggestion(_plain(text), [_plain(known) for known in names])
        guess = next((known for known in names if _plain(known) == near), None)
        raise UnknownNameError(
            f"spec `{text[:80]}` not found",
            hint=(f"did you mean `{guess}`? " if guess else "") + "`llmbench specs list` shows all",
        )
    return load_bundled(name)


def find_device(text: str) -> DeviceSpec:
    """The bundled device of this name or alias. Raises UnknownNameError with the nearest name."""
    names = bundled_devices()
    name = _lookup(text, names, "devices")
    if name is None:
        near = suggestion(text, names)
        raise UnknownNameError(
            f"device `{text[:80]}` not found",
            hint=(f"did you mean `{near}`? " if near else "") + "`llmbench specs list --devices` shows all",
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
    """A bundled model by its exact name."""
    return parse_spec(_text("models", name), f"spec {name}")


@lru_cache(maxsize=64)
def load_device(name: str) -> DeviceSpec:
    """A bundled device by its exact name."""
    from llmbench.spec.device import DeviceSpec  # most commands need no device

    return msgspec.toml.decode(_text("devices", name), type=DeviceSpec)


def device_rooms() -> list[tuple[str, int]]:
    """The bundled devices with their memory in bytes, smallest first. It is the usable memory, or the datasheet's where
    the driver's figure is not known. Cards of two devices are left out."""
    rooms = []
    for name in bundled_devices():
        head = _head("devices", name)
        figure = head.get("usable_memory_bytes") or head.get("memory_bytes")
        if figure is not None and head.get("nvml_names"):
            rooms.append((name, int(figure["value"])))
    return sorted(rooms, key=lambda room: (room[1], room[0]))


def device_text(name: str) -> str:
    """The file of a bundled device."""
    return _text("devices", name)


def _text(kind: str, name: str) -> str:
    return (SPECS / kind / f"{name}.toml").read_text(encoding="utf-8")


def _head(kind: str, name: str) -> dict[str, Any]:
    """The first paragraph of a spec file: names, and the memory of a device. A search over all files needs no more."""
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
    """config.json of a hub repository, downloaded (or taken from the local cache) by huggingface_hub."""
    from llmbench.spec.huggingface import load_config

    if repository.count("/") != 1:
        raise SpecError(f"hf:{repository[:80]} is not hf:organisation/name")
    try:
        from huggingface_hub import hf_hub_download
    except ImportError:
        raise CannotRunError(
            "reading from the Hugging Face hub needs the extra `hf`", hint="pip install 'llmbench[hf]'"
        ) from None
    import logging

    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)  # it would report every retry
    try:
        file = hf_hub_download(repository, "config.json")
    except LLMBenchError:
        raise
    except Exception as problem:  # huggingface_hub passes on many classes of its HTTP library
        reason = str(problem).strip().splitlines() or [type(problem).__name__]
        raise CannotRunError(
            f"cannot fetch config.json of {repository}: {reason[0][:200]}",
            hint="check the name and the network; gated models need `hf auth login`",
        ) from None
    return load_config(Path(file), name=repository.split("/")[1])
