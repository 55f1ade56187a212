"""Memory plan of every stage, printed by ``--plan``; nothing is allocated or trained."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from itertools import chain

import torch

from config.base import MOST_LAYERS, Offload, Precision
from config.params import Params
from config.paths import find_input, in_workspace
from layers.dataset.loaders import StackDataset
from layers.dataset.manifest import MANIFEST, read_header
from layers.sources.catalogue import bucket_limits
from models.precision import DTYPES
from models.transformer.trained_for import TrainedFor, read_trained_for
from training.memory.estimate import PlanError
from training.memory.networks import Networks, networks_in, networks_of, released
from training.memory.plan import NOTES, describe_stages, describe_training, largest_first
from training.memory.stages import Stage, Trained, vae_stage
from training.memory.use import Used, used_stage
from training.memory.work import Key

# Parameters of prepare_buckets that determine the buckets.
SIZES = {
    "source",
    "location",
    "rendered_root",
    "max_side",
    "min_side",
    "max_pixels",
    "max_aspect",
    "upscale",
    "max_layers",
}
IMAGES_AT_ONCE = 4  # default batch size of stages.decompose


def largest_size(
    multiple: int, smallest: int, longest: int, most_pixels: int, aspect: float = math.inf
) -> tuple[int, int]:
    """Height and width with the most pixels within bounds, the squarest of them.

    Raises:
        PlanError: if no size is within bounds.
    """
    sides = range(-(-smallest // multiple) * multiple, longest + 1, multiple)
    found = [(h, w) for h in sides for w in sides if h <= w <= aspect * h and h * w <= most_pixels]
    if not found:
        raise PlanError(f"no size with sides of {smallest} to {longest} px and at most {most_pixels} pixels")
    return max(found, key=lambda size: (size[0] * size[1], size[0]))


def keys_of(params: Params) -> tuple[list[Key], str]:
    """Buckets of the prepared data, else the largest that the parameters allow; and a sentence on which."""
    block = params.prepare_buckets
    root, why = in_workspace(block.output_root), "no data in {} yet"
    if (root / MANIFEST).is_file():
        made = read_header(root).get("settings", {})
        if all(made.get(name, value) == value for name, value in block.model_dump(include=SIZES).items()):
            return list(StackDataset(root, "train").keys), f"prepared data in {root}"
        # Such as data of the default while a preset is planned.
        why = "data in {} was prepared with other parameters"
    limits = bucket_limits(block)
    size = largest_size(limits.multiple, limits.min_side, limits.max_side, limits.max_pixels, limits.max_aspect)
    return [(*size, block.max_layers)], f"{why.format(root)}: the largest bucket that prepare_buckets allows"


def used_models(params: Params, networks: Networks) -> list[Used]:
    """Model and baselines of ``evaluate``, each assumed to be of the trained model's size."""
    settings = params.evaluate
    rows = [settings, *(settings.of_baseline(name) for name in settings.baselines)]
    return [Used(networks, _dtype(row.precision), row.offload) for row in rows]


def planned_stages(params: Params, networks: Networks, key: Key) -> list[Stage]:
    """Plans of all stages, for one bucket."""
    settings = params.evaluate
    model = Used(networks, _dtype(settings.precision), settings.offload)
    return [
        vae_stage(params.train_vae, networks, key),
        Trained("train_decompose", params.train_decompose, networks, key).stage(),
        Trained("refine", params.refine, networks, key).stage(),
        used_stage("evaluate", used_models(params, networks), key, settings.batch_size, scored=True),
        used_stage("decompose", [model._replace(offload="none")], key, IMAGES_AT_ONCE, scored=False),
    ]


def print_plan(params: Params) -> None:
    """Print the estimated memory of the stages of params.yaml, for the largest bucket."""
    networks, settings = networks_of(params), params.train_decompose
    keys, which = keys_of(params)
    surplus = settings.surplus.max_layers if settings.surplus.share else 0
    keys = largest_first(networks, ((*key[:2], max(key[2], surplus)) for key in keys))
    print(which)
    lines = describe_training(networks, keys, settings.optimisation.batch_size, settings.lora.rank)
    _print(chain(lines, describe_stages(planned_stages(params, networks, keys[0]), keys[0])), NOTES)


def print_use(model: str, layers: int | None, images: int, precision: Precision, offload: Offload) -> None:
    """Print the estimated memory of ``decompose``.

    Args:
        model: a folder, or a hub repository, which is assumed to be the released model.
        layers: requested number; ``None`` for the largest that the model was trained for.
        images: number that is decomposed together.
        precision: of the weights.
        offload: where weights are kept while unused.

    Raises:
        FileNotFoundError: if the folder holds no model.
    """
    folder = find_input(model)
    if not folder.is_dir() and not re.fullmatch(r"[\w-][\w.-]*/[\w.-]+", model):
        raise FileNotFoundError(f"{model}: neither a folder nor the name owner/name of a repository")
    networks = networks_in(folder) if folder.is_dir() else released()
    trained = read_trained_for(folder)
    side = networks.spatial_factor * networks.net.patch_size
    size = largest_size(_multiple(side, trained), trained.min_side, trained.max_side, trained.max_pixels)
    key = (*size, layers or trained.surplus_layers or MOST_LAYERS)
    used = Used(networks, _dtype(precision), offload)
    print(f"{folder if folder.is_dir() else 'taken for the released model'}; images at once: {images}")
    _print(describe_stages([used_stage("decompose", [used], key, images, scored=False)], key))


def _multiple(side: int, trained: TrainedFor) -> int:
    return max(side, trained.limits.multiple)


def _dtype(precision: Precision) -> torch.dtype:
    return DTYPES["bf16" if precision == "auto" else precision]


def _print(lines: Iterable[str], notes: Iterable[str] = ()) -> None:
    for line in chain(lines, notes):
        print(line, flush=True)
