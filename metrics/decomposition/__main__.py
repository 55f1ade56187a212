"""Command line ``python -m metrics.decomposition``; see :mod:`metrics.decomposition.folders`."""

import sys

from metrics.decomposition.folders import main

if __name__ == "__main__":
    sys.exit(main())
