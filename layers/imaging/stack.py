"""Sample type of all readers: a named stack of RGBA layers, bottom to top."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

KINDS = ("background", "image", "shape", "text", "shadow", "group")
# A design with more layers is refused before they are read: thousands of full-canvas layers exhaust the memory.
MAX_LAYERS = 500


@dataclass(frozen=True)
class Layer:
    """One full-canvas RGBA layer.

    Attributes:
        image: ``(H, W, 4)`` uint8, straight (not premultiplied) alpha.
        kind: one of :data:`KINDS`; ``group`` is a layer made of layers of different kinds.
        description: what the layer shows, in words; may be empty.
    """

    image: np.ndarray
    kind: str = "image"
    description: str = ""

    def __post_init__(self) -> None:
        if self.image.ndim != 3 or self.image.shape[2] != 4 or self.image.dtype != np.uint8:
            raise ValueError(
                f"a layer must be an (H, W, 4) uint8 array, got shape {self.image.shape} of {self.image.dtype}"
            )
        if self.kind not in KINDS:
            raise ValueError(f"unknown layer kind {self.kind!r}, expected one of {', '.join(KINDS)}")


@dataclass(frozen=True)
class LayeredSample:
    """A design: layers bottom to top on one canvas, with a caption.

    Attributes:
        sample_id: unique in its source and safe as a file name.
        layers: bottom to top, all of one size; at least one.
        caption: description of the composite; may be empty.
        preview: the source's own flat image of the design, ``(H, W, 4)`` uint8 of any size, if it has one; the
            composite of the layers is compared with it.
        notes: changes that the reader had to make, in words, such as ``multiply baked into "Shade"``.
        stratum: a part of the dataset that is scored separately, such as ``slide``; may be empty.
    """

    sample_id: str
    layers: tuple[Layer, ...]
    caption: str = ""
    preview: np.ndarray | None = None
    notes: tuple[str, ...] = ()
    stratum: str = ""

    def __post_init__(self) -> None:
        if not self.layers:
            raise ValueError(f"sample {self.sample_id}: no layers")
        sizes = {layer.image.shape[:2] for layer in self.layers}
        if len(sizes) > 1:
            raise ValueError(f"sample {self.sample_id}: layers differ in size (height, width): {sorted(sizes)}")

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of the canvas in pixels."""
        height, width = self.layers[0].image.shape[:2]
        return height, width
