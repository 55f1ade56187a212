"""Evaluation sets: a bucketed split, or the designs of a source at their own size.

Images are ``(H, W, 4)`` uint8 with straight alpha. A network takes few sizes, but a design is scored at its own. So
the whole image is stretched to a size the network takes, and its layers are stretched back.
"""

from __future__ import annotations

import itertools
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from config.errors import SampleError
from inference.sizes import shown_to_model, stretched_size
from layers.dataset.batches import BucketBatches
from layers.dataset.buckets import BucketLimits, NoBucketError
from layers.dataset.loaders import StackDataset, StackRecord
from layers.dataset.manifest import plain
from layers.dataset.storage import read_image
from layers.imaging.codec import ImageError
from layers.imaging.compositing import group_into_peels, over, to_float, to_uint8
from layers.sources.base import Source

# Smallest side for LPIPS with the AlexNet trunk, whose three poolings leave nothing of less.
SMALLEST_SIDE = 31


@dataclass(frozen=True)
class EvaluationSample:
    """An image to decompose, and its true layers.

    Attributes:
        sample_id: unique in its dataset.
        caption: what the image shows; may be empty.
        layers: true layers ``(H, W, 4)``, bottom to top, at the scored size; not grouped into peels.
        kinds: of each layer, of :data:`layers.imaging.stack.KINDS`.
        image: ``(H, W, 4)``, composite of the layers.
        model_size: (height, width) of the network's input.
        layers_asked: requested number of layers, at least 1.
        stratum: part of the set that has metrics of its own; may be empty.
    """

    sample_id: str
    caption: str
    layers: list[np.ndarray]
    kinds: tuple[str, ...]
    image: np.ndarray
    model_size: tuple[int, int]
    layers_asked: int
    stratum: str = ""

    @property
    def bucket(self) -> str:
        """``96x64``: width and height of ``model_size``."""
        return f"{self.model_size[1]}x{self.model_size[0]}"


class EvaluationSet(ABC):
    """Samples to evaluate, in a fixed order.

    Attributes:
        description: names the set in a report.
        asked: describes the requested number of layers.
        skipped: reason of each unreadable sample, by its id; filled by :meth:`batches`, complete at its end.
    """

    def __init__(self, description: str, asked: str) -> None:
        self.description, self.asked = description, asked
        self.skipped: dict[str, str] = {}

    @abstractmethod
    def __len__(self) -> int:
        """Number of samples, including those that will be skipped."""

    @abstractmethod
    def batches(self, batch_size: int) -> Iterator[list[EvaluationSample]]:
        """Yield all samples in batches of up to ``batch_size`` of one ``model_size`` and one ``layers_asked``."""

    @abstractmethod
    def read(self, sample_id: str) -> EvaluationSample:
        """Read one sample, as :meth:`batches` yields it.

        Raises:
            SampleError: with the reason if it cannot be read.
        """


class BucketedSplit(EvaluationSet):
    """Split of a bucketed dataset, bucket by bucket: scored at the bucket's size, with the true L requested.

    Args:
        root: the bucketed dataset.
        split: ``train``, ``val`` or ``test``.
        limits: bounds of the network's input size.
        max_layers: largest requested number of layers.

    Raises:
        DatasetError: if there is no such dataset or the split is empty.
    """

    def __init__(self, root: str | Path, split: str, limits: BucketLimits, max_layers: int) -> None:
        super().__init__(f"{root}, split {split}", f"as many as the sample has, at most {max_layers}")
        self._dataset, self._limits, self._max_layers = StackDataset(root, split), limits, max_layers

    def __len__(self) -> int:
        return len(self._dataset)

    def batches(self, batch_size: int) -> Iterator[list[EvaluationSample]]:
        """See :class:`EvaluationSet`."""
        self.skipped.clear()
        for indices in BucketBatches(self._dataset.keys, batch_size, fill="partial", shuffle=False):
            # Not the dataset's items, which hold another sample in place of one with a broken image.
            if samples := [sample for index in indices if (sample := self._tried(index)) is not None]:
                yield samples

    def read(self, sample_id: str) -> EvaluationSample:
        """See :class:`EvaluationSet`."""
        if sample_id not in self._indices:
            raise SampleError(f"{self.description}: no sample has the id {sample_id!r}")
        return self._sample(self._dataset.record(self._indices[sample_id]))

    @cached_property
    def _indices(self) -> dict[str, int]:
        return {self._dataset.name(index): index for index in range(len(self._dataset))}

    def _tried(self, index: int) -> EvaluationSample | None:
        record = self._dataset.record(index)
        try:
            return self._sample(record)
        except SampleError as error:
            self.skipped[record.sample_id] = str(error)
            return None

    def _sample(self, record: StackRecord) -> EvaluationSample:
        height, width, layers_asked = record.bucket
        # Any size is stretched to one that the network takes, as decompose does.
        size = stretched_size((height, width), self._limits)
        try:
            layers = [read_image(self._dataset.root, place) for place in record.layers]
            image = read_image(self._dataset.root, record.composite)
        except ImageError as error:
            raise SampleError(str(error)) from None
        words = record.sample_id, record.caption
        asked = min(layers_asked, self._max_layers)
        return EvaluationSample(*words, layers, record.kinds, image, size, asked, record.stratum)


class SourceDesigns(EvaluationSet):
    """Designs of a source, in its order, scored at their own size and read one after the other.

    The requested number of layers is that of the true peels, as the metric groups them. At most a batch and the design
    after it are in memory; neighbours that differ in size or number of layers share no batch.

    Args:
        source: the reader.
        limits: bounds of the network's input size.
        max_layers: largest requested number of layers.
        count: number of designs from the source's first on; ``None`` for all.
        description: see :class:`EvaluationSet`.
        long_side: pixels to which the long side of a larger design is reduced; ``None`` leaves its size.
    """

    def __init__(
        self,
        source: Source,
        limits: BucketLimits,
        max_layers: int,
        *,
        count: int | None,
        description: str,
        long_side: int | None = None,
    ) -> None:
        counted = "as many as the sample has, counted as the protocol groups them"
        super().__init__(description, f"{counted}, at most {max_layers}")
        self._source, self._limits, self._max_layers, self._long_side = source, limits, max_layers, long_side
        self._ids = source.sample_ids()[:count]

    def __len__(self) -> int:
        return len(self._ids)

    def batches(self, batch_size: int) -> Iterator[list[EvaluationSample]]:
        """See :class:`EvaluationSet`."""
        self.skipped.clear()
        for _, alike in itertools.groupby(self._samples(), lambda sample: (sample.model_size, sample.layers_asked)):
            while batch := list(itertools.islice(alike, batch_size)):
                yield batch
                # Otherwise it would stay in memory while the next one is read.
                del batch

    def _samples(self) -> Iterator[EvaluationSample]:
        for sample_id in self._ids:
            try:
                yield self.read(sample_id)
            except SampleError as error:
                self.skipped[sample_id] = plain(str(error))

    def read(self, sample_id: str) -> EvaluationSample:
        """See :class:`EvaluationSet`."""
        try:
            design = self._source.read(sample_id)
        except SampleError:
            raise
        except Exception as error:
            # An unexpected error of a reader skips one design only, as in prepare_buckets.
            raise SampleError(f"the reader failed with {type(error).__name__}: {error}") from error
        size = reduced(design.size, self._long_side)
        try:
            model_size = stretched_size(size, self._limits)
        except NoBucketError as error:
            raise SampleError(str(error)) from None
        if min(size) < SMALLEST_SIDE:
            raise SampleError(
                f"{size[1]}x{size[0]} pixels are too few to be scored: LPIPS takes sides of at least {SMALLEST_SIDE}"
            )
        layers = [shown_to_model(layer.image, size) for layer in design.layers]
        if not any(layer[..., 3].any() for layer in layers):
            raise SampleError("every layer is empty")
        flat = np.zeros((*size, 4), np.float32)
        for layer in layers:
            flat = over(to_float(layer), flat)
        return EvaluationSample(
            sample_id,
            plain(design.caption),
            layers,
            tuple(layer.kind for layer in design.layers),
            to_uint8(flat),
            model_size,
            min(len(group_into_peels([layer[..., 3] for layer in layers])), self._max_layers),
            plain(design.stratum),
        )


def reduced(canvas: tuple[int, int], long_side: int | None) -> tuple[int, int]:
    """Reduce a canvas's (height, width) to a long side of at most ``long_side`` pixels, at its aspect.

    A banner stays large enough for its short side to be scored.
    """
    if long_side is None or max(canvas) <= long_side:
        return canvas
    factor = max(long_side / max(canvas), min(1.0, SMALLEST_SIDE / min(canvas)))
    height, width = (max(1, round(side * factor)) for side in canvas)
    return height, width
