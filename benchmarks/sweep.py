"""Compute the parameter counts of 10,000 variants of a model through the Python API, and print the seconds that this
takes.

    python benchmarks/sweep.py [MODEL]
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from itertools import islice, product
from typing import Any

from llmbench.sizing.params import count_parameters
from llmbench.spec.catalog import find_model
from llmbench.spec.override import override, parse_assignments

VARIANTS = 10_000


def variants() -> Iterator[dict[str, Any]]:
    """Yield the assignments (as for `--set`) of each variant: widths, depth, key-value heads and vocabulary."""
    for hidden, width, layers, kv_heads, vocab in product(
        range(1024, 9216, 512),
        range(2048, 22528, 2048),
        (8, 16, 24, 32),
        (1, 2, 4, 8),
        (32000, 50257, 65536, 128256),
    ):
        yield parse_assignments(
            [
                f"hidden_size={hidden}",
                f"intermediate_size={width}",
                f"num_hidden_layers={layers}",
                f"num_key_value_heads={kv_heads}",
                f"vocab_size={vocab}",
            ]
        )


def sweep(model: str) -> int:
    """Return the sum of the parameters of all variants. The sum shows that no variant was left out."""
    spec = find_model(model)
    return sum(count_parameters(override(spec, changes)).total for changes in islice(variants(), VARIANTS))


def main() -> None:
    """Print the seconds that the sweep takes."""
    model = sys.argv[1] if len(sys.argv) > 1 else "llama2-7b"
    start = time.perf_counter()
    total = sweep(model)
    seconds = time.perf_counter() - start
    print(f"{VARIANTS:,} variants of {model}, {total:,} parameters in all: {seconds:.2f} s")


if __name__ == "__main__":
    main()
