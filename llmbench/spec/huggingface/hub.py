"""Read the config of a repository of the Hugging Face hub, or say in one sentence why it cannot be read."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import msgspec

from llmbench.errors import CannotRunError, LLMBenchError, SpecError, UnknownNameError, install_hint
from llmbench.printable import printable
from llmbench.spec.huggingface import load_config
from llmbench.spec.model import ModelSpec
from llmbench.spec.reading import read_text
from llmbench.spec.weights.on_hub import HUB
from llmbench.spec.weights.tensors import has_all_files

TIMEOUT_S = 1.5
"""The longest time in seconds until the hub answers the first request."""

FILE = "config.json"
BESIDE = "hf_quant_config.json"
"""The file in which some repositories say how their weights are quantised."""


def read_config(repository: str) -> ModelSpec:
    """Return the model that the config.json of a repository describes. huggingface_hub downloads the file, or takes it
    from its local cache. hf_quant_config.json is read too if the config does not say how the weights are stored.

    `weights.tensors_in` names the place of the headers of the files, which are not read: the folder of the cache if it
    has all files, else the repository.

    Raises SpecError, UnknownNameError or CannotRunError with the reason if there is no such file.
    """
    if repository.count("/") != 1:
        raise SpecError(f"`hf:{repository[:80]}` does not have the form hf:organisation/name")
    try:
        import huggingface_hub as hub
        from huggingface_hub import constants, errors
    except ImportError:
        raise CannotRunError("models from the Hugging Face hub need the extra `hf`", hint=install_hint("hf")) from None
    # Below this level, huggingface_hub logs every retry.
    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)
    try:
        # Without a network, hf_hub_download tries again for half a minute. This request tries once.
        url = hub.hf_hub_url(repository, FILE)
        within(TIMEOUT_S, lambda: hub.get_hf_file_metadata(url, timeout=TIMEOUT_S))
        file = hub.hf_hub_download(repository, FILE)
        _download_beside(hub, repository, Path(file), errors)
    except Exception as problem:  # huggingface_hub raises many error classes, also of its HTTP library
        why = refusal(repository, problem, errors, constants.ENDPOINT, FILE)
        cached = hub.try_to_load_from_cache(repository, FILE) if isinstance(why, CannotRunError) else None
        if not isinstance(cached, str):
            raise why from None
        file = cached
    spec = load_config(Path(file), name=repository.split("/")[1])
    folder = Path(file).parent  # its name is the commit
    place = str(folder) if has_all_files(folder) else f"{HUB}{repository}@{folder.name}"
    return msgspec.structs.replace(spec, weights=msgspec.structs.replace(spec.weights, tensors_in=place))


def _download_beside(hub: Any, repository: str, config: Path, errors: Any) -> None:
    """Download hf_quant_config.json beside the config, if the repository has it and the config does not replace it."""
    commit = config.parent.name
    if '"quantization_config"' in read_text(config):
        return
    if hub.try_to_load_from_cache(repository, BESIDE, revision=commit) is None:  # not known whether it exists
        with suppress(errors.EntryNotFoundError):
            hub.hf_hub_download(repository, BESIDE, revision=commit)


def within(seconds: float, call: Callable[[], object]) -> None:
    """Run `call`, and raise what it raises. Raise TimeoutError if it takes longer than `seconds`.

    The thread is needed because the look-up of a host's name has no time limit of its own.
    """
    raised: list[Exception] = []

    def run() -> None:
        try:
            call()
        except Exception as problem:
            raised.append(problem)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(seconds)
    if thread.is_alive():
        raise TimeoutError
    if raised:
        raise raised[0]


def refusal(repository: str, problem: Exception, errors: Any, endpoint: str, file: str) -> LLMBenchError:
    """Return the error that says why a file cannot be read, and what the user can do.

    errors: the error classes of huggingface_hub. file: name of the file.
    """
    page, named = f"{endpoint}/{repository}", "the config" if file == FILE else printable(file)
    status = getattr(getattr(problem, "response", None), "status_code", None)
    if isinstance(problem, errors.HFValidationError):
        return SpecError(f"`hf:{repository[:80]}` is not the name of a repository", hint="write hf:organisation/name")
    if isinstance(problem, errors.GatedRepoError) or status == 403:
        return CannotRunError(
            f"the repository `{repository}` is gated: only accounts with a permission can read its files",
            hint=f"ask for the permission at {page}, and then run `hf auth login`",
        )
    if isinstance(problem, errors.EntryNotFoundError) and status == 404:
        return SpecError(
            f"the repository `{repository}` has no {file}",
            hint="it can be a data set, or weights in another format; use the repository of the original model",
        )
    if isinstance(problem, errors.RepositoryNotFoundError) or status in (401, 404):
        return UnknownNameError(
            f"there is no public repository `{repository}` at {endpoint}",
            hint="check the name; for a private repository, run `hf auth login` first",
        )
    if isinstance(problem, errors.OfflineModeIsEnabled):
        return CannotRunError(
            f"{named} of `{repository}` is not in the local cache, and HF_HUB_OFFLINE forbids a download",
            hint="unset HF_HUB_OFFLINE, or give the path of a config.json on this machine",
        )
    if status is not None:
        return CannotRunError(
            f"{endpoint} answered the request for {named} of `{repository}` with the status {status}",
            hint="try again later, or give the path of a config.json on this machine",
        )
    return CannotRunError(
        f"cannot reach {endpoint} to read {named} of `{repository}`",
        hint="check the network, or give the path of a config.json on this machine",
    )
