"""llmbench: size, profile and benchmark language models.

A `ModelSpec` describes a model once. All predictions and measurements of the model use this description.

    import llmbench as lb

    lb.params("llama2-7b").value.total
    lb.kv_cache("llama3-8b", "deepseek-v3", seq=32768)

The functions are in `llmbench.api`, which is imported when a function is first used.
"""

from __future__ import annotations

from llmbench._version import __version__

TYPE_CHECKING = False  # without an import of typing, the command line sooner begins to handle Ctrl-C
if TYPE_CHECKING:
    from typing import Any

    from llmbench.api import Answer, build, fit, flops, kv_cache, load, memory, mfu, params

__all__ = ["Answer", "__version__", "build", "fit", "flops", "kv_cache", "load", "memory", "mfu", "params"]


def __getattr__(name: str) -> Any:
    """Import the Python interface when one of its names is used, so that `import llmbench` stays cheap."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from llmbench import api

    return getattr(api, name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
