"""Settings of a report, with which the metrics of every row were computed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from config.evaluate import TOLD, Evaluate
from evaluation.designs import BucketedSplit
from evaluation.samples import Measured
from evaluation.sets import NamedSet
from inference.decomposer import Decomposer
from models.precision import name_of


def of_baselines(settings: Evaluate) -> dict[str, Evaluate]:
    """Settings of each baseline, by its name."""
    return {name: settings.of_baseline(name) for name in settings.baselines}


def use_of(model: Decomposer, settings: Evaluate, told: bool, md5: Mapping[str, str]) -> dict[str, object]:
    """Resolved settings of a row's model that may differ from row to row."""
    return {
        "model": settings.model,
        "weights_md5": md5.get(settings.model, "not known"),
        "text": model.condition.encoder if told else "none",
        "steps": settings.steps,
        "sampling_shift": model.trained_for.sampling_shift or "by the size of the image",
        "tries": settings.tries,
        "guidance": settings.guidance if told else 1.0,
        "precision": name_of(model.dtype),
        "offload": settings.offload,
    }


def setting_of(
    one: NamedSet,
    measured: Sequence[Measured],
    model: Decomposer,
    *,
    settings: Evaluate,
    baselines: Mapping[str, Decomposer],
    md5: Mapping[str, str],
) -> dict[str, object]:
    """Settings of a report; ``rows`` has those that differ for other models, or for this one with captions.

    Args:
        one: the set.
        measured: scores of its samples.
        model: the evaluated one.
        settings: of the stage.
        baselines: other models, by name.
        md5: digests of inputs, by path.
    """
    images = one.images
    told = settings.captions == "told"
    use = use_of(model, settings, told, md5)
    rows = {name: use_of(baselines[name], how, told, md5) for name, how in of_baselines(settings).items()}
    if any(TOLD in sample.levels for sample in measured):
        rows[TOLD] = use_of(model, settings, True, md5)
    return {
        "samples": len(measured),
        "source": images.description,
        "split": settings.split if isinstance(images, BucketedSplit) else "all of it",
        "layers_asked": images.asked,
        **use,
        "seed": settings.seed,
        "restored": "yes" if settings.restore else "no",
        "sizes": sorted({m.bucket for m in measured}),
        "device": model.device.type,
        "skipped": dict(images.skipped),
        "rows": {name: {key: row[key] for key in row if row[key] != use[key]} for name, row in rows.items()},
    }
