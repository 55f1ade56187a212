"""Uncommitted values of a parameter file: what a user has set there and git does not have."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

import yaml

from config.params import flatten


def uncommitted(path: Path, raw: Any) -> set[str]:
    """Dotted keys whose values in a parameter file are others than in the last commit.

    Args:
        path: of the file.
        raw: its content.

    Returns:
        Nothing where the last commit has no such file that can be read, or where there is no repository.
    """
    try:
        said = subprocess.run(
            ["git", "show", f"HEAD:./{path.name}"], cwd=path.parent, capture_output=True, check=True
        ).stdout
        before = yaml.safe_load(said)
    except (OSError, subprocess.CalledProcessError, yaml.YAMLError):
        return set()
    return different(before, raw) if isinstance(before, dict) and isinstance(raw, dict) else set()


def different(before: dict[str, Any], after: dict[str, Any]) -> set[str]:
    """Dotted keys that only one of two nested mappings has, or that have other values; ``None`` is a value."""
    left, right = flatten(before), flatten(after)
    absent = object()
    return {key for key in left | right if left.get(key, absent) != right.get(key, absent)}
