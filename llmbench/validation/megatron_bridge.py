"""Say what the peak memory in a performance card of Megatron-Bridge depends on, and what its settings do not give.

The cards (skills/*/card.yaml in NVIDIA-NeMo/Megatron-Bridge) name a recipe by its model and its parallelism. The
recipe, which changes from commit to commit, has the other settings. Without them, any figure would be a guess.
"""

from __future__ import annotations

import json

from llmbench.validation.comparison import Answer
from llmbench.validation.rows import RefusedError, Row

__all__ = ["answer"]

_NEEDED = {
    "parallelism": "the layout",
    "seq_length": "the sequence length",
    "mbs": "the micro-batch",
    "gbs": "the global batch",
    "precision": "the precision",
    "sequence_parallel": "sequence parallelism",
    "main_grads_dtype": "the format of the gradients",
    "exp_avg_dtype": "the formats of the optimizer states",
    "cross_entropy_fusion_impl": "the kind of loss",
}
"""Keys of the settings on which the peak depends, and what they say."""


def answer(row: Row) -> Answer:
    """Refuse a row, with what it does not give.

    Raises RefusedError always: a run with all settings belongs in a file with the columns of megatron_runs.
    """
    if row.number("peak_mem_gb") is None:
        raise RefusedError("the row has no peak memory")
    try:
        settings = json.loads(row.text("settings") or "{}")
    except ValueError:
        settings = None
    if not isinstance(settings, dict):
        raise RefusedError("column `settings` is not a JSON object")
    missing = [what for key, what in _NEEDED.items() if key not in settings]
    if missing:
        raise RefusedError(f"column `settings` does not give {', '.join(missing)}")
    raise RefusedError("llmbench compares runs of Megatron by the columns of megatron_runs, not by settings")
