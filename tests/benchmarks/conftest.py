"""Makes `benchmarks` importable as a package of this tree.

The root of the tree is not on the path, because its folder `kernels` would hide the package that transformers imports.
"""

import sys
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

if "benchmarks" not in sys.modules:
    spec = spec_from_file_location("benchmarks", Path(__file__).parents[2] / "benchmarks" / "__init__.py")
    assert spec is not None
    sys.modules["benchmarks"] = module_from_spec(spec)
