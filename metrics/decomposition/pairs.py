"""Pairwise measures of RGBA layers: colour distance, alpha soft IoU and cost (LayerD protocol).

Layers are 8-bit straight-alpha images ``(H, W, 4)``. Sums over pixels are exact integers; the only floats are ratios of
two such sums. So a measure does not depend on the order of summation.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from PIL import Image

EPSILON = 1e-8  # added to the number of compared pixels in the colour distance (step 2)

# A block of this many pixels and its scratch space stay in the second-level cache.
_BLOCK_PIXELS = 1 << 17
# Bytes are summed in 16-bit lanes, where 257 of them fit; a row of lanes is a whole number of 64-bit words.
_LANE_ROWS = 256
_PIXELS_PER_WORD = 2

_identifiers = itertools.count()


@dataclass(frozen=True)
class PairMeasure:
    """Distance of one layer from another (step 2); not symmetric: the second layer says where colour counts.

    Attributes:
        rgb_l1: mean absolute colour difference in [0, 1] where the second layer's alpha is above 0.
        alpha_iou: soft intersection over union of the alphas in [0, 1]; 0 if both are empty.
    """

    rgb_l1: float
    alpha_iou: float

    @property
    def cost(self) -> float:
        """Cost that the alignment minimises, in [0, 1]."""
        return (self.rgb_l1 + (1.0 - self.alpha_iou)) / 2.0


class PixelLayer:
    """A layer with the sums that comparisons need, computed at first use.

    Args:
        image: ``(H, W, 4)`` uint8, straight alpha; must not be changed afterwards.
    """

    def __init__(self, image: np.ndarray) -> None:
        self.image = np.ascontiguousarray(image)
        self.identifier = next(_identifiers)

    @cached_property
    def coverage(self) -> int:
        """Number of pixels with alpha above 0."""
        return int(np.count_nonzero(self._pixels > 0x00FFFFFF))

    @cached_property
    def alpha_sum(self) -> int:
        """Sum of alpha in 1/255."""
        return int((self._pixels >> 24).sum(dtype=np.int64))

    @cached_property
    def keep(self) -> np.ndarray:
        """``(4 H W,)`` uint8: 255, except 0 for the colours of pixels with alpha 0."""
        return np.where(self._pixels > 0x00FFFFFF, np.uint32(0xFFFFFFFF), np.uint32(0xFF000000)).view(np.uint8)

    @property
    def _pixels(self) -> np.ndarray:
        return self.image.reshape(-1).view("<u4")  # alpha is the highest byte


def over_8bit(bottom: np.ndarray, top: np.ndarray) -> np.ndarray:
    """Put ``top`` over ``bottom``, both ``(H, W, 4)`` uint8, in Pillow's integer arithmetic (step 2).

    Where the top's alpha is 0 the bottom's pixel stays as it is, colour under alpha 0 included.
    """
    return np.asarray(Image.alpha_composite(Image.fromarray(bottom), Image.fromarray(top)))


def pair_measure(first: np.ndarray, second: np.ndarray, soft_alpha_weight: bool = False) -> PairMeasure:
    """Compare two ``(H, W, 4)`` uint8 layers of one size, once; see :class:`PairMeter` for many pairs."""
    meter = PairMeter(first.shape[0] * first.shape[1], soft_alpha_weight)
    return meter.measure(PixelLayer(first), PixelLayer(second))


class PairMeter:
    """Measures pairs of layers of one size and caches every result.

    Args:
        pixels: H times W of the layers.
        soft_alpha_weight: weigh colour differences by the second layer's alpha instead of by alpha > 0.
        float_sums: sum floats in the reference's order instead of integers: equal but for the last bits, thirty times
            slower. Only of use where rounding decided in the reference.
    """

    def __init__(self, pixels: int, soft_alpha_weight: bool = False, float_sums: bool = False) -> None:
        self.soft_alpha_weight = soft_alpha_weight
        self.float_sums = float_sums
        self._measures: dict[tuple[int, int], PairMeasure] = {}
        self._intersections: dict[tuple[int, int], int] = {}
        unit = _LANE_ROWS * _PIXELS_PER_WORD
        block = min(_BLOCK_PIXELS, -(-pixels // unit) * unit)
        self._larger = np.zeros(4 * block, np.uint8)
        self._smaller = np.zeros(4 * block, np.uint8)

    def measure(self, first: PixelLayer, second: PixelLayer) -> PairMeasure:
        """Compare two layers; colours count where the second has alpha above 0."""
        key = (first.identifier, second.identifier)
        if key not in self._measures:
            rgb_sum, alpha_difference = self._difference_sums(first, second)
            intersection = (first.alpha_sum + second.alpha_sum - alpha_difference) // 2  # |a - b| = a + b - 2 min
            union = first.alpha_sum + second.alpha_sum - intersection
            self._intersections[key] = self._intersections[key[::-1]] = intersection
            if self.float_sums:
                self._measures[key] = _float_measure(first.image, second.image)
            elif self.soft_alpha_weight:
                rgb_l1 = _soft_rgb_sum(first.image, second.image) / (second.alpha_sum / 255.0 + EPSILON)
                self._measures[key] = PairMeasure(rgb_l1, _ratio(intersection, union))
            else:
                rgb_l1 = rgb_sum / 765.0 / (second.coverage + EPSILON)
                self._measures[key] = PairMeasure(rgb_l1, _ratio(intersection, union))
        return self._measures[key]

    def similarity(self, layer: PixelLayer, others: Sequence[PixelLayer]) -> float:
        """Sum of 1 - cost of a layer against each of the others."""
        total = 0.0  # not sum(): since Python 3.12 it compensates rounding, which the reference's floats do not
        for other in others:
            total += 1.0 - self.measure(layer, other).cost
        return total

    def similarity_bound(self, parts: Sequence[PixelLayer], others: Sequence[PixelLayer]) -> float:
        """Upper bound of the similarity that ``parts`` merged into one can have; needs no pixels.

        Every part must have been measured against every other, in either order. Colours are taken to match; for
        alphas max(a, b) <= over(a, b) <= a + b holds in every pixel, 8-bit rounding included.
        """
        bound = 0.0
        for other in others:
            shared = sum(self._intersections[part.identifier, other.identifier] for part in parts)
            shared = min(shared, other.alpha_sum)
            union = max(part.alpha_sum for part in parts) + other.alpha_sum - shared
            bound += (1.0 + _ratio(shared, union)) / 2.0
        return bound

    def _difference_sums(self, first: PixelLayer, second: PixelLayer) -> tuple[int, int]:
        """Sum |difference| of R, G and B where the second layer's alpha is above 0, and of alpha everywhere."""
        one, two, keep = first.image.reshape(-1), second.image.reshape(-1), second.keep
        rgb = alpha = 0
        for start in range(0, one.size, self._larger.size):
            stop = min(start + self._larger.size, one.size)
            difference, smaller = self._larger[: stop - start], self._smaller[: stop - start]
            np.maximum(one[start:stop], two[start:stop], out=difference)
            np.minimum(one[start:stop], two[start:stop], out=smaller)
            np.subtract(difference, smaller, out=difference)
            np.bitwise_and(difference, keep[start:stop], out=difference)
            self._larger[stop - start :] = 0
            # Little-endian pairs of bytes: the low ones are R and B, the high ones G and alpha.
            pairs, lanes = self._larger.view("<u2"), self._smaller.view("<u2")
            red, blue = _sum_lanes(np.bitwise_and(pairs, 0xFF, out=lanes))
            green, alphas = _sum_lanes(np.right_shift(pairs, 8, out=lanes))
            rgb += red + green + blue
            alpha += alphas
        return rgb, alpha


def _ratio(part: int, whole: int) -> float:
    return part / whole if whole > 0 else 0.0


def _sum_lanes(lanes: np.ndarray) -> tuple[int, int]:
    """Sum the even and the odd entries of uint16 values up to 255; four lanes share one 64-bit addition."""
    sums = np.add.reduce(lanes.view(np.uint64).reshape(_LANE_ROWS, -1), axis=0).view("<u2")
    even, odd = sums.reshape(-1, 2).sum(axis=0, dtype=np.int64).tolist()
    return even, odd


def _soft_rgb_sum(first: np.ndarray, second: np.ndarray) -> float:
    """Sum the second layer's alpha times the mean |difference| of R, G and B, all in [0, 1]."""
    difference = np.maximum(first[..., :3], second[..., :3]) - np.minimum(first[..., :3], second[..., :3])
    rgb = difference.sum(axis=-1, dtype=np.float64).ravel()
    return float(second[..., 3].ravel().astype(np.float64) @ rgb) / (765.0 * 255.0)


def _float_measure(first: np.ndarray, second: np.ndarray) -> PairMeasure:
    """Compare two layers with the reference's float64 operations in the reference's order, to the last bit."""
    one, two = (np.divide(np.moveaxis(image, -1, 0), 255.0, order="C") for image in (first, second))
    mask = second[..., 3] > 0
    red, green, blue = np.abs(one[:3] - two[:3])
    rgb_l1 = ((red + green + blue) / 3.0 * mask).sum() / (mask.sum() + EPSILON)
    intersection = np.minimum(one[3], two[3]).sum()
    union = np.maximum(one[3], two[3]).sum()
    return PairMeasure(float(rgb_l1), float(intersection / union) if union > 0 else 0.0)
