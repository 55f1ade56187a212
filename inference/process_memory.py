"""Process memory: peak main memory of this process, on every operating system."""

from __future__ import annotations

import sys

import psutil

try:
    import resource
except ImportError:  # Windows has no such module
    resource = None


def process_peak() -> int:
    """Peak bytes of main memory so far."""
    if resource is None:
        return psutil.Process().memory_info().peak_wset
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    # In kibibytes, on macOS in bytes.
    return peak if sys.platform == "darwin" else peak * 1024
