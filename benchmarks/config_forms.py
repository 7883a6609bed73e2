"""Compare the figures of a config in the form of the hub with those in the form that transformers 5 writes.

    python benchmarks/config_forms.py                        # all model types with an importer; half a minute
    python benchmarks/config_forms.py --type llama --type t5 # only these model types

For each model type, the script changes one key of the default config after the other. transformers reads each changed
config and writes it with all keys. llmbench reads both configs. Their parameters, active parameters and cache bytes
must be equal, or llmbench must say that one of the answers is approximate. For each difference, the script prints the
total that transformers counts on the meta device. The exit code is 1 if there is a difference.
"""

from __future__ import annotations

import argparse
import json
import logging
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from llmbench.errors import LLMBenchError
from llmbench.sizing.kvcache import kv_cache
from llmbench.sizing.params import count_parameters
from llmbench.spec.huggingface import from_config, supported_model_types

TOKENS = 1000
"""The length of the sequence whose cache is compared."""


class Figures(NamedTuple):
    """The figures of a config."""

    parameters: int
    active: int
    cache_bytes: int


class Difference(NamedTuple):
    """A changed key whose two forms have other figures. expected: transformers' total, or None if it has none."""

    model_type: str
    key: str
    value: Any
    hub: Figures
    written: Figures
    expected: int | None


def figures(config: dict[str, Any]) -> Figures | None:
    """Return the figures of a config. None: it is refused, or marked approximate."""
    try:
        spec = from_config(config, name="x")
        if spec.approximate:
            return None
        counted = count_parameters(spec)
        return Figures(counted.total, counted.active, kv_cache(spec, TOKENS).bytes_total)
    except LLMBenchError:
        return None


def differences(model_type: str) -> Iterator[Difference]:
    """Yield the changed keys of a model type whose two forms have other figures."""
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    from tests.oracles.config_variations import variations
    from tests.oracles.transformers_meta import measure

    for variation in variations(model_type):
        read = CONFIG_MAPPING[model_type].from_dict(json.loads(json.dumps(variation.config)))
        written = {"model_type": model_type, **json.loads(read.to_json_string(use_diff=False))}
        hub, saved = figures(variation.config), figures(written)
        if hub is None or saved is None or hub == saved:
            continue
        try:
            expected = measure(variation.config).total
        except Exception:  # transformers raises many kinds of errors for configs that it cannot build
            expected = None
        yield Difference(model_type, variation.key, variation.value, hub, saved, expected)


def main() -> int:
    """Print the differences and return the exit code."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--type", action="append", metavar="NAME", help="compare only this model type; repeatable")
    chosen = parser.parse_args().type
    sys.path.insert(0, str(Path(__file__).parent.parent))
    logging.disable(logging.WARNING)
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    found = 0
    for model_type in chosen or [name for name in supported_model_types() if name in CONFIG_MAPPING]:
        for each in differences(model_type):
            found += 1
            expected = "unknown" if each.expected is None else f"{each.expected:,}"
            print(f"{each.model_type}: {each.key} = {str(each.value)[:60]}")
            print(f"  as in the hub {each.hub}, as written {each.written}, transformers' total {expected}")
    print(f"{found} differences")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
