"""llmbench: size, profile and benchmark language models.

A `ModelSpec` describes a model once. All predictions and measurements of the model use this description. In Python,
start with `llmbench.spec.catalog.find_model("llama2-7b")` and the functions of `llmbench.sizing`.
"""

from llmbench._version import __version__

__all__ = ["__version__"]
