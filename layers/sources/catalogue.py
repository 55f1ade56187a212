"""Readers by name: the one that the parameters choose."""

from __future__ import annotations

from config.errors import ParamsError
from config.params import PrepareBuckets
from layers.dataset.buckets import BucketLimits
from layers.sources.base import Source
from layers.sources.crello.reader import CrelloSource
from layers.sources.diffsynth import DiffSynthSource
from layers.sources.lica.reader import LicaSource
from layers.sources.location import Location
from layers.sources.musubi import MusubiSource
from layers.sources.prism.reader import PrismLayersSource
from layers.sources.psd.reader import PsdSource
from layers.sources.rendered import RenderedSource


def open_source(settings: PrepareBuckets) -> Source:
    """Open the dataset that ``settings.source`` names, except ``composer``, whose designs have to be made first.

    Raises:
        UserError: if its location cannot be opened, or holds no such dataset.
        ParamsError: for ``composer``.
    """

    def place(url: str, key: str = "location") -> Location:
        return Location(url, f"prepare_buckets.{key}", follow_links=settings.follow_links)

    match settings.source:
        case "rendered":
            images = place(settings.rendered_root, "rendered_root")
            layouts = settings.layout_root and place(settings.layout_root, "layout_root")
            return RenderedSource(images, layouts)
        case "lica":
            return LicaSource(place(settings.location), **settings.lica.model_dump())
        case "crello":
            return CrelloSource(place(settings.location), **settings.crello.model_dump())
        case "prism_layers":
            return PrismLayersSource(place(settings.location), **settings.prism_layers.model_dump())
        case "psd":
            return PsdSource(place(settings.location))
        case "musubi":
            return MusubiSource(place(settings.location))
        case "diffsynth":
            return DiffSynthSource(place(settings.location), **settings.diffsynth.model_dump())
    raise ParamsError(
        f"prepare_buckets.source: got {settings.source!r}, expected a dataset that is there, such as rendered or crello"
    )


def bucket_limits(settings: PrepareBuckets) -> BucketLimits:
    """Bounds of the bucket sizes."""
    return BucketLimits(
        min_side=settings.min_side,
        max_side=settings.max_side,
        max_pixels=settings.max_pixels,
        max_aspect=settings.max_aspect,
        upscale=settings.upscale,
    )
