"""`benchmarks` as a package of this tree. The tree's root is on no path: its folder `kernels` is not the package that
transformers looks for."""

import sys
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

if "benchmarks" not in sys.modules:
    where = spec_from_file_location("benchmarks", Path(__file__).parents[2] / "benchmarks" / "__init__.py")
    assert where is not None
    sys.modules["benchmarks"] = module_from_spec(where)
