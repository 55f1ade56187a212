"""Schema of the block ``prepare_buckets`` of params.yaml."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, field_validator, model_validator

from config.base import Block, Count, InputPath, Natural, PipelinePath

SIDE_MULTIPLE = 32


class Composer(Block):
    """The composer: the embedded stream of designs."""

    seed: Natural
    size: Annotated[int, Field(ge=48, le=4096, multiple_of=6)]
    assets: Literal["train", "held_out"]
    test_seed: Natural


class Crello(Block):
    """Reader of Crello."""

    split: Literal["train", "validation", "test", "all"]
    short_side: Count | None
    layerd_filters: bool


class Lica(Block):
    """Reader of LICA's public release."""

    fonts: InputPath | None
    download: bool


class PrismLayers(Block):
    """Reader of the PrismLayers sets."""

    split: str | None


class DiffSynth(Block):
    """Reader of DiffSynth-Studio's datasets."""

    metadata: Annotated[str, Field(min_length=1)]


SOURCES = ("composer", "rendered", "lica", "crello", "prism_layers", "psd", "musubi", "diffsynth")


class PrepareBuckets(Block):
    """Stage prepare_buckets."""

    source: Literal[SOURCES]
    location: InputPath | None
    rendered_root: InputPath
    layout_root: InputPath | None
    follow_links: bool
    composer: Composer
    crello: Crello
    lica: Lica
    prism_layers: PrismLayers
    diffsynth: DiffSynth
    output_root: PipelinePath
    storage: Literal["files", "shards"]
    shard_samples: Count
    train_count: Count | None
    val_count: Count | None
    val_share: Annotated[float, Field(ge=0, le=1)]
    validation_list: InputPath | None
    test_count: Natural | None
    test_share: Annotated[float, Field(ge=0, le=1)]
    test_list: InputPath | None
    seed: Natural
    max_side: Count
    min_side: Count
    max_pixels: Count
    max_aspect: Annotated[float, Field(ge=1)]
    upscale: bool
    drop_empty: bool
    drop_hidden: bool
    drop_unchanging: bool
    min_change: Annotated[float, Field(ge=0, le=255)]
    group: Literal["peels", "max_layers", "none"]
    overlap_alpha: Annotated[int, Field(ge=0, le=254)]
    max_layers: Count
    preview_tolerance: Annotated[float, Field(ge=0, le=255)]
    drop_mismatched: bool
    jobs: Annotated[int, Field(ge=-1)]
    cluster: Annotated[str, Field(min_length=1)]

    @field_validator("max_side", "min_side")
    @classmethod
    def _side(cls, value: int) -> int:
        if value % SIDE_MULTIPLE:
            raise ValueError(f"a multiple of {SIDE_MULTIPLE}")
        return value

    @model_validator(mode="after")
    def _sides(self) -> PrepareBuckets:
        if self.min_side > self.max_side:
            raise ValueError(f"min_side at most max_side ({self.max_side}), got min_side {self.min_side}")
        if self.max_pixels < self.min_side**2:
            raise ValueError(f"max_pixels at least min_side squared ({self.min_side**2}), got {self.max_pixels}")
        if self.val_share + self.test_share > 1.0:
            raise ValueError(f"test_share at most 1 - val_share ({1 - self.val_share:g}), got {self.test_share}")
        if self.source == "composer":
            if None in (self.train_count, self.val_count, self.test_count):
                raise ValueError("train_count, val_count and test_count numbers: the composer's stream has no end")
            if self.test_share or self.test_list or self.validation_list:
                raise ValueError(
                    "test_share 0.0, test_list and validation_list null: the composer makes designs for each split"
                )
            if self.composer.test_seed == self.composer.seed:
                raise ValueError(f"a composer.test_seed that is not composer.seed, got {self.composer.seed} for both")
            if not 0 < self.val_share < 1:
                raise ValueError(f"val_share between 0 and 1 to fill both counts, got {self.val_share}")
        elif self.source != "rendered" and self.location is None:
            raise ValueError(f"location the folder or URL of the dataset that source {self.source} reads, got null")
        if self.jobs == 0:
            raise ValueError("jobs 1 or more, or -1 for one per core, got 0")
        return self
