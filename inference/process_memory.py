"""Main memory that this process has taken, on every system."""

from __future__ import annotations

import sys

import psutil

try:
    import resource
except ImportError:  # Windows has none
    resource = None


def process_peak() -> int:
    """Bytes of main memory at most so far."""
    if resource is None:
        return psutil.Process().memory_info().peak_wset
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    # Kibibytes, but of macOS bytes.
    return peak if sys.platform == "darwin" else peak * 1024
