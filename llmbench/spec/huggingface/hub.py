"""Read the config of a repository of the Hugging Face hub, or say in one sentence why it cannot be read."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

import msgspec

from llmbench.errors import CannotRunError, SpecError
from llmbench.printable import printable
from llmbench.spec.huggingface import load_config
from llmbench.spec.huggingface.hub_requests import TIMEOUT_S, HubRequests
from llmbench.spec.model import ModelSpec
from llmbench.spec.weights.on_hub import HUB
from llmbench.spec.weights.tensors import has_all_files

FILE = "config.json"
BESIDE = "hf_quant_config.json"
"""The file in which some repositories say how their weights are quantised."""

_COMMIT = re.compile(r"[0-9a-f]{6,64}")


def read_config(repository: str) -> ModelSpec:
    """Return the model that the config.json of a repository describes. The file comes from the hub, or from the local
    cache of huggingface_hub if the hub does not send it. hf_quant_config.json is read too if the config does not say
    how the weights are stored.

    `weights.tensors_in` names the place of the headers of the files, which are not read: the folder of the cache if it
    has all files, else the repository.

    Raises SpecError, UnknownNameError or CannotRunError with the reason if there is no such file.
    """
    if repository.count("/") != 1:
        raise SpecError(f"`hf:{repository[:80]}` does not have the form hf:organisation/name")
    hub = HubRequests(repository)
    notes: tuple[str, ...] = ()
    try:
        folder = _download(hub, repository)
    except CannotRunError as problem:
        cached = _cached(repository)
        if cached is None:
            raise
        folder = cached
        notes = (f"the config is that of commit {folder.name[:12]} in the local cache: {problem}",)
    spec = load_config(folder, name=repository.split("/")[1])
    place = str(folder) if has_all_files(folder) else f"{HUB}{repository}@{folder.name}"
    weights = msgspec.structs.replace(spec.weights, tensors_in=place)
    return msgspec.structs.replace(spec, weights=weights, notes=(*notes, *spec.notes))


def _cached(repository: str) -> Path | None:
    """Return the folder of the cache that has the config of a repository. Its name is the commit."""
    import huggingface_hub

    file: Any = huggingface_hub.try_to_load_from_cache(repository, FILE)
    return Path(file).parent if isinstance(file, str) else None


def _download(hub: HubRequests, repository: str) -> Path:
    """Write the config of a repository, and the file beside it, into the cache. Return their folder."""
    config = hub.whole(FILE, answer_s=TIMEOUT_S)
    if config is None:
        raise SpecError(
            f"the repository `{repository}` has no {FILE}",
            hint="it can be a data set, or weights in another format; use the repository of the original model",
        )
    if not _COMMIT.fullmatch(config.commit):
        raise CannotRunError(f"{hub.endpoint} does not say the commit of {FILE}, and may be no Hugging Face hub")
    files = {FILE: config.content}
    if b'"quantization_config"' not in config.content:
        beside = hub.whole(BESIDE)
        files |= {} if beside is None else {BESIDE: beside.content}
    try:
        return _write(repository, config.commit, files)
    except OSError as problem:
        raise CannotRunError(
            f"cannot write to the cache of the Hugging Face hub: {printable(str(problem))}",
            hint="set HF_HOME to a folder that can be written",
        ) from None


def _write(repository: str, commit: str, files: dict[str, bytes]) -> Path:
    """Write files into the cache of huggingface_hub, which reads them there too. Return their folder.

    The form of the cache: https://huggingface.co/docs/huggingface_hub/guides/manage-cache
    """
    from huggingface_hub import constants

    place = Path(constants.HF_HUB_CACHE) / f"models--{repository.replace('/', '--')}"
    folder, branches = place / "snapshots" / commit, place / "refs"
    for each in (folder, branches):
        each.mkdir(parents=True, exist_ok=True)
    written = {folder / name: content for name, content in files.items()} | {branches / "main": commit.encode()}
    for path, content in written.items():
        part = path.with_name(f"{path.name}.{os.getpid()}.incomplete")
        part.write_bytes(content)
        part.replace(path)
    return folder
