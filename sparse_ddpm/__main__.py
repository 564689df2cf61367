"""``python -m sparse_ddpm``: the command line, where its script is not on the path."""

from __future__ import annotations

import sys

from sparse_ddpm.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
