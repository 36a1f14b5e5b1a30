"""``python -m fewports``: the command line."""

import sys

from fewports.cli import main

if __name__ == "__main__":
    sys.exit(main())
