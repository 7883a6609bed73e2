"""Entry point of the command `llmbench` and of `python -m llmbench`.

The first lines let Ctrl-C end the process without a traceback, so nothing may be imported before them. They need only
modules that the interpreter has already loaded: `signal` would import `enum` first.
"""

import _signal  # type: ignore[import-not-found]
import os
import sys

if _signal.getsignal(_signal.SIGINT) is _signal.default_int_handler:  # a parent such as nohup ignores Ctrl-C
    _signal.signal(_signal.SIGINT, lambda *_: os._exit(130))

if __name__ == "__main__" and not sys.flags.safe_path:
    # `python -m` puts the current folder first, where a file torch.py would be imported in place of the package.
    sys.path.append(sys.path.pop(0))

from llmbench.cli import main

if __name__ == "__main__":
    main()
