"""Search for a spec by the text that a user types.

The text is the name or an alias of a bundled model or device, the path of a TOML file, of a config.json, of its folder
or of a GGUF file, or `hf:organisation/name`. A name of a bundled model means this model, also if a folder has the same
name; the path of the folder is `./name`. The comparison of names ignores case, hyphens, dots and underscores. For
example, `llama-2-7b` and `LLaMA2_7B` both name `llama2-7b`.
"""

from __future__ import annotations

import os
import tomllib
from functools import cache, lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import msgspec

from llmbench.errors import SpecError, UnknownNameError, suggestion
from llmbench.spec.files import parse_spec, read_spec
from llmbench.spec.model import ModelSpec

if TYPE_CHECKING:
    from llmbench.spec.device import DeviceSpec

SPECS = Path(__file__).parent.parent / "specs"
"""The folder that contains the bundled specs.

This file does not import `importlib.resources`, because that import takes a tenth of the start time of a command.
"""

__all__ = [
    "built_in",
    "bundled_devices",
    "bundled_models",
    "bundled_name",
    "find_device",
    "find_model",
    "load_bundled",
    "load_device",
]


def find_model(text: str) -> ModelSpec:
    """Return the model spec that the text names.

    Raises UnknownNameError if no model has this name. The hint gives the most similar name. Raises SpecError if the
    file is invalid, and UnsupportedError if the config has an unknown model type.
    """
    if text.startswith("hf:"):
        from llmbench.spec.huggingface.hub import read_config

        return read_config(text.removeprefix("hf:"))
    path = Path(text)
    if (name := built_in(text)) is not None:
        spec = load_bundled(name)
        if not os.path.isdir(path):
            return spec
        note = f"{text} is the built-in model; the folder of this name is ./{text}"
        return msgspec.structs.replace(spec, notes=(note, *spec.notes))
    if path.suffix == ".gguf":
        from llmbench.spec.huggingface.gguf import load_gguf

        return load_gguf(path)
    if not text.strip() or (os.path.isdir(path) and not os.path.lexists(path / "config.json")):
        problem = f"no config.json in the folder `{path}` ({path.absolute()})" if text.strip() else "MODEL is empty"
        raise UnknownNameError(problem, hint="`llmbench specs list` shows the built-in models")
    if text.endswith((".toml", ".json")) or "/" in text or os.path.isdir(path):
        if path.suffix == ".toml" and os.path.isfile(path):
            return read_spec(path)
        if os.path.exists(path):
            from llmbench.spec.huggingface import load_config

            return load_config(path)
        if "/" not in text or path.suffix in (".toml", ".json") or text.startswith((".", "/", "~")):
            raise UnknownNameError(f"file `{text}` not found")
    name = bundled_name(text)  # such as `meta-llama/Llama-2-7b`, an alias
    if name is None:
        raise UnknownNameError(f"model `{text[:80]}` not found", hint=_model_hint(text, bundled_models()))
    return load_bundled(name)


def built_in(text: str) -> str | None:
    """Return the name of the bundled model that a text without a slash means, or None if it can only be a path."""
    return None if "/" in text or text.endswith((".toml", ".json")) else bundled_name(text)


def bundled_name(text: str) -> str | None:
    """Return the name of the bundled model that a name or an alias means, or None. It is never a path."""
    return _lookup(text, bundled_models(), "models")


def _model_hint(text: str, names: tuple[str, ...]) -> str:
    """Return a hint for a text that names no model: the models that the user may mean."""
    listed = "`llmbench specs list` shows all models"
    if text.count("/") == 1:
        return f"`hf:{text[:80]}` reads the config of a Hugging Face repository. {listed}"
    device = _lookup(text, bundled_devices(), "devices")
    if device is not None:
        fits = f"`llmbench memory llama2-7b --device {device}` says whether a model fits on it"
        return f"`{device}` is a device: {fits}, and `llmbench specs show {device}` shows it. {listed}"
    wanted = _plain(text)
    family = [name for name in names if len(wanted) > 2 and _plain(name).startswith(wanted)]
    if family:
        more = f" and {len(family) - 6} more" if len(family) > 6 else ""
        return f"models with this name: {', '.join(family[:6])}{more}. {listed}"
    for name in names if len(wanted) > 2 else ():
        kind = _head("models", name).get("family", "")
        if _plain(kind).startswith(wanted):
            family.append(name)
    if family:
        return f"models of this family: {', '.join(family[:6])}. {listed}"
    near = suggestion(wanted, [_plain(known) for known in names])
    guess = next((known for known in names if _plain(known) == near), None)
    return (f"did you mean `{guess}`? " if guess else "") + listed


def find_device(text: str) -> DeviceSpec:
    """Return the bundled device with this name or alias.

    Raises UnknownNameError if no device has this name. The hint gives the most similar name.
    """
    return load_device(_device_name(text))


def _device_name(text: str) -> str:
    names = bundled_devices()
    name = _lookup(text, names, "devices")
    if name is None:
        raise UnknownNameError(f"device `{text[:80]}` not found", hint=_device_hint(text, names))
    return name


def _device_hint(text: str, names: tuple[str, ...]) -> str:
    """Return what the user can do about a text that is the name of no device."""
    if "," in text:
        return "repeat the option for several devices, as in --device h100 --device l40s"
    every = "`llmbench specs list --devices` shows all devices"
    if _lookup(text, bundled_models(), "models") is not None:
        return f"`{text}` is a model. {every}"
    begun, near = devices_named(text), suggestion(text, names)
    if begun:
        return f"devices with this name: {', '.join(begun)}. {every}"
    return f"did you mean `{near}`? {every}" if near else every


@lru_cache(maxsize=1)
def bundled_models() -> tuple[str, ...]:
    """Return the sorted names of the bundled models."""
    return _stems("models")


@lru_cache(maxsize=1)
def bundled_devices() -> tuple[str, ...]:
    """Return the sorted names of the bundled devices."""
    return _stems("devices")


def load_bundled(name: str) -> ModelSpec:
    """Return the bundled model with exactly this name. Aliases and other spellings are not accepted."""
    return parse_spec(model_text(name), f"spec {name}")


@lru_cache(maxsize=64)
def load_device(name: str) -> DeviceSpec:
    """Return the bundled device with exactly this name. Aliases and other spellings are not accepted."""
    from llmbench.spec.device import DeviceSpec  # DeviceSpec is imported here, because most commands need no device

    return msgspec.toml.decode(_text("devices", name), type=DeviceSpec)


class DeviceHead(NamedTuple):
    """The facts about a device that decide whether it can run a model. The first paragraph of its file has them.

    memory_bytes: total memory that the driver reports. If this total is unknown, it is the memory of the datasheet.
    matrix_formats: number formats that the matrix units multiply.
    cuda_memory_bytes: total memory that a CUDA program sees. None: it is not known.
    compute_capability: CUDA compute capability, such as "9.0". "": the device is not from NVIDIA.
    num_sms: number of streaming multiprocessors or compute units. 0: it is not known.
    vendor: nvidia, amd, apple, google or intel.
    gpu_memory_share: share of the memory that the operating system lets the GPU use by default.
    driver_reports: whether `memory_bytes` is the total of the driver.
    """

    name: str
    memory_bytes: int
    matrix_formats: frozenset[str]
    cuda_memory_bytes: int | None = None
    compute_capability: str = ""
    num_sms: int = 0
    vendor: str = "nvidia"
    gpu_memory_share: float = 1
    driver_reports: bool = False

    @property
    def memory_from(self) -> str:
        """Where `memory_bytes` comes from, after a size of memory: `that the driver reports`."""
        return "that the driver reports" if self.driver_reports else "of the datasheet"

    @property
    def total_from(self) -> str:
        """Where `total_bytes` comes from, after a size of memory: `that CUDA reports`."""
        return self.memory_from if self.cuda_memory_bytes is None else "that CUDA reports"

    @property
    def total_bytes(self) -> int:
        """The total memory that a program sees: the smallest total that is known."""
        return self.cuda_memory_bytes or self.memory_bytes


def find_device_head(text: str) -> DeviceHead:
    """Return the facts about the bundled device with this name or alias.

    Raises UnknownNameError if no device has this name, and SpecError for a board with two GPUs.
    """
    name = _device_name(text)
    head = next((head for head in device_heads() if head.name == name), None)
    if head is None:
        half = next(head.name for head in device_heads() if head.name.startswith(f"{name}-"))
        raise SpecError(
            f"device `{name}` is a board with two GPUs, and the memory is that of one GPU",
            hint=f"use --device {half}, which is one GPU of it",
        )
    return head


def devices_named(text: str) -> list[str]:
    """Return the devices whose names begin with the text, for example several for `a100`. Case does not matter."""
    return [head.name for head in device_heads() if _plain(head.name).startswith(_plain(text))]


@lru_cache(maxsize=1)
def device_heads() -> tuple[DeviceHead, ...]:
    """Return the facts about each bundled device, with the smallest memory first. Boards with two GPUs are skipped."""
    heads = []
    for name in bundled_devices():
        head = _head("devices", name)
        figure = head.get("usable_memory_bytes") or head["memory_bytes"]
        if head.get("gpus", 1) == 1:
            seen = head.get("cuda_memory_bytes")
            heads.append(
                DeviceHead(
                    name,
                    int(figure["value"]),
                    frozenset(head["matrix_formats"]["value"]),
                    None if seen is None else int(seen["value"]),
                    head.get("compute_capability", ""),
                    int(head["num_sms"]["value"]) if "num_sms" in head else 0,
                    head["vendor"],
                    head["gpu_memory_share"]["value"] if "gpu_memory_share" in head else 1,
                    "usable_memory_bytes" in head,
                )
            )
    return tuple(sorted(heads, key=lambda head: (head.memory_bytes, head.name)))


def model_text(name: str) -> str:
    """Return the text of the TOML file of a bundled model."""
    return _text("models", name)


def device_text(name: str) -> str:
    """Return the text of the TOML file of a bundled device."""
    return _text("devices", name)


def _text(kind: str, name: str) -> str:
    return (SPECS / kind / f"{name}.toml").read_text(encoding="utf-8")


@cache
def _head(kind: str, name: str) -> dict[str, Any]:
    """Parse only the first paragraph of a spec file. It contains the names, and in a device file also the memory.

    A search through all files needs only these fields. It would be slower if it parsed the whole files.
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
