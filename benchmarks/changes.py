"""Parameters of presets/from_nothing.yaml with changes from a benchmark's command line."""

from __future__ import annotations

from collections.abc import Sequence

import yaml

from config.params import Params, load_params, parse_params, with_values

RECIPE = "presets/from_nothing.yaml"


def changed_params(stage: str, changes: Sequence[str]) -> Params:
    """:data:`RECIPE` with ``KEY=VALUE`` changes of one stage's block, as in ``optimisation.batch_size=4``.

    Raises:
        ParamsError: if there is no such key, or the value does not fit it.
    """
    pairs = (change.split("=", 1) for change in changes)
    values = {f"{stage}.{path}": yaml.safe_load(value) for path, value in pairs}
    return parse_params(with_values(load_params(RECIPE).model_dump(), values))
