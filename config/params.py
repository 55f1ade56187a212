"""Schema of params.yaml: every key, its type and its bounds, checked before memory is allocated.

The schema holds no defaults: params.yaml is the only place for a parameter, and presets hold what differs from it.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, Field, ValidationError, model_validator

from config.base import Block, Positive
from config.decompose import Refine, TrainDecompose
from config.errors import ParamsError
from config.evaluate import Evaluate
from config.overlays import layers_of, merged
from config.prepare import SIDE_MULTIPLE, PrepareBuckets
from config.tune import Tune
from config.vae import TrainVAE


class Tracking(Block):
    """Store of the runs (MLflow)."""

    experiment: Annotated[str, Field(min_length=1)]
    system_metrics: bool


class Params(Block):
    """The whole of params.yaml."""

    preset: str | None
    launcher: Annotated[str, Field(min_length=1)]
    collective_timeout: Positive
    tracking: Tracking
    prepare_buckets: PrepareBuckets
    train_vae: TrainVAE
    train_decompose: TrainDecompose
    refine: Refine
    evaluate: Evaluate
    tune: Tune

    @model_validator(mode="after")
    def _tokens(self) -> Params:
        vae, patch = self.train_vae, self.train_decompose.patch_size
        pixels = 2 ** (len(vae.dim_mult) - 1) * patch
        if vae.rgb_checkpoint is None and SIDE_MULTIPLE % pixels:
            raise ValueError(
                f"sides in multiples of {SIDE_MULTIPLE} to split into tokens; train_vae.dim_mult {vae.dim_mult} and "
                f"train_decompose.patch_size {patch} make tokens of {pixels} pixels"
            )
        return self


def _sentence(source: str, error: dict[str, Any]) -> str:
    key = ".".join(str(part) for part in error["loc"]) or "top level"
    kind, given = error["type"], error["input"]
    if kind == "extra_forbidden":
        return f"{source}: {key}: unknown key (value {given!r}); expected one of the keys of params.yaml"
    if kind == "missing":
        return f"{source}: {key}: missing; expected a value, there are no hidden defaults"
    expected = error["msg"].removeprefix("Value error, ").removeprefix("Input should be ")
    if isinstance(given, dict):
        return f"{source}: {key}: expected {expected}"
    hint = ""
    if isinstance(given, str) and "float" in kind:
        hint = " (write floats with a point, as in 1.0e-4)"
    return f"{source}: {key}: got {given!r}, expected {expected}{hint}"


def parse_params(raw: Any, source: str = "params.yaml") -> Params:
    """Check a parsed params.yaml.

    Args:
        raw: the parsed YAML.
        source: the file's name, for messages.

    Raises:
        ParamsError: one line per fault, each naming key, value and expectation.
    """
    if not isinstance(raw, dict):
        raise ParamsError(f"{source}: expected a mapping of stage blocks, got {type(raw).__name__}")
    try:
        return Params.model_validate(raw)
    except ValidationError as error:
        raise ParamsError("\n".join(_sentence(source, item) for item in error.errors())) from None


def read_params(path: str | Path) -> Any:
    """Read a parameter file, unchecked; an overlay is merged into its base (:mod:`config.overlays`).

    Raises:
        ParamsError: if a file is missing, is no YAML, or builds on none.
    """
    (_, raw), *overlays = layers_of(Path(path))
    for _, overlay in overlays:
        raw = merged(raw, overlay, Params)
    return raw


def load_params(path: str | Path = "params.yaml") -> Params:
    """Read and check a parameter file, or an overlay and its base.

    Raises:
        ParamsError: if a file is missing, is no YAML, or builds on none.
        ParamsError: if it breaks the schema.
    """
    return parse_params(read_params(path), Path(path).name)


def flatten(block: Any, prefix: str = "") -> dict[str, Any]:
    """Flatten nested blocks to dotted keys, the names MLflow, Optuna and ``dvc exp run -S`` use."""
    if isinstance(block, BaseModel):
        block = block.model_dump()
    flat: dict[str, Any] = {}
    for key, value in block.items():
        name = f"{prefix}{key}"
        if isinstance(value, dict) and value:
            flat.update(flatten(value, f"{name}."))
        else:
            flat[name] = value
    return flat


def with_values(raw: dict[str, Any], values: Mapping[str, Any]) -> dict[str, Any]:
    """Copy nested parameters with some dotted paths set.

    Raises:
        ParamsError: if a path does not exist.
    """
    changed = copy.deepcopy(raw)
    for path, value in values.items():
        *parents, last = path.split(".")
        block = changed
        for name in parents:
            block = block.get(name) if isinstance(block, dict) else None
        if not isinstance(block, dict) or last not in block:
            raise ParamsError(f"tune: {path}: no such parameter in params.yaml")
        block[last] = value
    return changed


def nested(values: Mapping[str, Any]) -> dict[str, Any]:
    """Turn dotted keys into nested mappings, as in a parameter file; the inverse of :func:`flatten`."""
    result: dict[str, Any] = {}
    for path, value in values.items():
        *parents, last = path.split(".")
        block = result
        for name in parents:
            block = block.setdefault(name, {})
        block[last] = value
    return result
