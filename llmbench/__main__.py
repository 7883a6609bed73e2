"""Entry point of `python -m llmbench`."""

import sys

if not sys.flags.safe_path:
    # `python -m` puts the current folder first, where a file torch.py would be imported in place of the package.
    sys.path.append(sys.path.pop(0))

from llmbench.cli import main

main()
