"""llmbench: size, profile and benchmark language models.

One description of a model (`ModelSpec`) and every figure about it, predicted or measured, from that description. From
Python: `llmbench.spec.catalog.find_model("llama2-7b")`, then the functions of `llmbench.sizing`.
"""

from llmbench._version import __version__

__all__ = ["__version__"]
