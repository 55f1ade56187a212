import gc
import shutil
import weakref

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from config.errors import SampleError
from evaluation.designs import SMALLEST_SIDE, BucketedSplit, SourceDesigns
from inference.sizes import at_scored_size, shown_to_model, stretched_size
from layers.dataset.buckets import BucketLimits, NoBucketError, place
from layers.dataset.loaders import StackDataset
from layers.dataset.manifest import DatasetError
from layers.dataset.storage import read_image
from layers.imaging.compositing import composite, to_float
from layers.imaging.stack import Layer, LayeredSample
from layers.sources.base import Source
from metrics.decomposition.alignment import composite_peels
from metrics.reconstruction import perceptual
from tests.layers.sources.crello.designs import design, element, noise, plain, save
from tests.layers.sources.crello.designs import source as crello

LIMITS = BucketLimits(min_side=64, max_side=96, max_pixels=6144, max_aspect=2.3)
ENLARGED = BucketLimits(min_side=64, max_side=96, max_pixels=6144, max_aspect=2.3, upscale=True)


def disc(size, centre, radius, alpha=255):
    rows, columns = np.indices(size)
    inside = (rows + 0.5 - centre[0]) ** 2 + (columns + 0.5 - centre[1]) ** 2 <= radius**2
    image = np.zeros((*size, 4), np.uint8)
    image[inside] = (200, 40, 90, alpha)
    return image


def stack(name, size, *discs):
    ground = Layer(np.full((*size, 4), 255, np.uint8), "background")
    return LayeredSample(name, (ground, *(Layer(disc(size, *item), "shape") for item in discs)), f"design {name}")


class Shelf(Source):
    """Designs, or what goes wrong with them, by id; ``made`` is what was read."""

    def __init__(self, **designs):
        self.designs, self.made = designs, []

    def sample_ids(self):
        return list(self.designs)

    def signature(self, sample_id):
        return ""

    def read(self, sample_id):
        entry = self.designs[sample_id]
        if isinstance(entry, Exception):
            raise entry
        made = stack(sample_id, *entry)
        self.made.append(weakref.ref(made.layers[0].image))
        return made


def same(one, other):
    for name in ("sample_id", "caption", "kinds", "model_size", "layers_asked", "bucket"):
        assert getattr(one, name) == getattr(other, name)
    for a, b in zip([*one.layers, one.image], [*other.layers, other.image], strict=True):
        assert np.array_equal(a, b)


def designs(source, limits=LIMITS, max_layers=6, count=None):
    return SourceDesigns(source, limits, max_layers, count=count, description="designs")


APART = ((100, 150), ((30, 30), 15), ((70, 110), 15))
STACKED = ((100, 150), ((50, 75), 40), ((50, 75), 15))
TALL = ((150, 100), ((75, 50), 30))


# ---- a bucketed split


def test_a_split_is_read_in_order_bucket_by_bucket(bucketed_root):
    split = BucketedSplit(bucketed_root, "train", LIMITS, 20)
    assert split.description == f"{bucketed_root}, split train"
    batches = list(split.batches(2))
    samples = [sample for batch in batches for sample in batch]
    dataset = StackDataset(bucketed_root, "train")
    records = {record.sample_id: record for record in map(dataset.record, range(len(dataset)))}
    assert len(samples) == len(split) == len(dataset)
    assert {sample.sample_id for sample in samples} == set(records)
    assert max(map(len, batches)) == 2
    keys = [{(sample.model_size, sample.layers_asked) for sample in batch} for batch in batches]
    assert all(len(key) == 1 for key in keys)
    seen = [key for (key,) in keys]
    assert seen == sorted(seen, key=seen.index), "a bucket's batches lie together"
    assert [sample.sample_id for batch in split.batches(3) for sample in batch] == [s.sample_id for s in samples]
    for sample in samples:
        record = records[sample.sample_id]
        assert (*sample.model_size, sample.layers_asked) == record.bucket
        assert sample.bucket == f"{record.bucket[1]}x{record.bucket[0]}"
        assert (sample.kinds, sample.caption) == (record.kinds, record.caption)
        assert len(sample.layers) == sample.layers_asked
        for layer, place_ in zip(sample.layers, record.layers, strict=True):
            assert np.array_equal(layer, read_image(bucketed_root, place_))
        assert sample.image.shape == (*sample.model_size, 4) and sample.image.dtype == np.uint8
        flat = composite([to_float(layer) for layer in sample.layers])
        assert np.abs(flat - to_float(sample.image)).max() <= 1 / 255 + 1e-6
        same(split.read(sample.sample_id), sample)
    assert split.skipped == {}
    with pytest.raises(SampleError, match="split train: no sample has the id 'nobody'"):
        split.read("nobody")


def test_a_broken_image_of_a_split_is_skipped_and_no_other_stands_in(bucketed_root, tmp_path):
    root = shutil.copytree(bucketed_root, tmp_path / "copy")
    dataset = StackDataset(root, "val")
    broken = dataset.record(1)
    (root / broken.layers[0]["path"]).write_bytes(b"no image")
    split = BucketedSplit(root, "val", LIMITS, 20)
    for _ in range(2):
        found = [sample.sample_id for batch in split.batches(4) for sample in batch]
        assert sorted([*found, broken.sample_id]) == sorted(dataset.name(i) for i in range(len(dataset)))
        assert list(split.skipped) == [broken.sample_id]
        assert "not a readable image" in split.skipped[broken.sample_id]
    with pytest.raises(SampleError, match="not a readable image"):
        split.read(broken.sample_id)


def test_a_split_that_is_not_there_is_refused(tmp_path):
    with pytest.raises(DatasetError):
        BucketedSplit(tmp_path, "val", LIMITS, 20)


def test_no_network_is_asked_for_more_than_it_can_be(bucketed_root):
    most = {
        sample.layers_asked for batch in BucketedSplit(bucketed_root, "train", LIMITS, 2).batches(4) for sample in batch
    }
    assert most == {2}


# ---- designs of a source


def test_designs_keep_order_and_size_and_only_equal_neighbours_share_a_batch():
    shelf = Shelf(a=STACKED, b=STACKED, c=STACKED, d=APART, e=TALL, f=STACKED)
    batches = list(designs(shelf).batches(2))
    assert [[sample.sample_id for sample in batch] for batch in batches] == [["a", "b"], ["c"], ["d"], ["e"], ["f"]]
    first, *_, tall, last = (batch[0] for batch in batches)
    assert first.image.shape == last.layers[0].shape == (100, 150, 4) and tall.image.shape == (150, 100, 4)
    assert (first.model_size, first.bucket, tall.model_size, tall.bucket) == ((64, 96), "96x64", (96, 64), "64x96")
    assert (first.layers_asked, batches[2][0].layers_asked, tall.layers_asked) == (3, 2, 2)
    assert (first.caption, first.kinds) == ("design a", ("background", "shape", "shape"))
    same(designs(shelf).read("e"), tall)
    assert np.array_equal(first.image, np.where(first.layers[1][..., 3:] > 0, first.layers[1], first.layers[0]))


def test_what_cannot_be_had_is_skipped_with_its_reason():
    shelf = Shelf(
        a=STACKED, gone=SampleError("no such file"), fault=KeyError("left"), long=((30, 90),), small=((60, 60),), b=TALL
    )
    chosen = designs(shelf)
    assert len(chosen) == 6
    for _ in range(2):
        assert [sample.sample_id for batch in chosen.batches(4) for sample in batch] == ["a", "b"]
        assert chosen.skipped == {
            "gone": "no such file",
            "fault": "the reader failed with KeyError: 'left'",
            "long": "aspect 3.00 of 90x30 is above max_aspect 2.3",
            "small": "60x60 can be stretched to no size with sides from 64 to 96, 6144 pixels and no upscaling",
        }
    assert [len(list(designs(shelf, ENLARGED).batches(1))), designs(shelf).description] == [3, "designs"]


@pytest.mark.parametrize(("canvas", "scored"), [((90, 970), (31, 334)), ((970, 90), (334, 31)), ((90, 250), (90, 250))])
def test_a_banner_is_left_as_large_as_it_has_to_be_for_lpips(canvas, scored):
    limits = BucketLimits(min_side=64, max_side=768, max_pixels=65536, max_aspect=12.0, upscale=True)
    shelf = Shelf(a=(canvas, ((40, 40), 20)), speck=((16, 16), ((8, 8), 3)))
    chosen = SourceDesigns(shelf, limits, 6, count=None, description="banners", long_side=256)
    ((sample,),) = chosen.batches(1)
    assert sample.image.shape[:2] == scored
    assert chosen.skipped == {"speck": "16x16 pixels are too few to be scored: LPIPS takes sides of at least 31"}
    assert perceptual.SMALLEST_SIDE["alex"] == SMALLEST_SIDE


def test_an_empty_design_is_skipped():
    class Nothing(Shelf):
        def read(self, sample_id):
            return LayeredSample(sample_id, (Layer(np.zeros((100, 100, 4), np.uint8)),))

    chosen = designs(Nothing(a=None))
    assert list(chosen.batches(1)) == [] and chosen.skipped == {"a": "every layer is empty"}


def test_count_and_max_layers_limit():
    shelf = Shelf(a=STACKED, b=STACKED, c=STACKED)
    chosen = designs(shelf, max_layers=2, count=2)
    (batch,) = chosen.batches(8)
    assert len(chosen) == len(batch) == 2 and {sample.layers_asked for sample in batch} == {2}
    assert len(batch[0].layers) == 3, "the truth stays whole"


def test_designs_are_read_when_they_are_due_and_let_go_afterwards():
    shelf = Shelf(**{f"s{k}": (TALL, STACKED)[k % 2] for k in range(8)})
    batches = designs(shelf).batches(4)
    for seen in range(1, 7):
        assert len(next(batches)) == 1
        gc.collect()
        assert len(shelf.made) == seen + 1
        assert sum(made() is not None for made in shelf.made) <= 2, "the batch given last and the design that is next"


def test_layers_asked_are_the_peels_of_the_metric():
    rng = np.random.default_rng(0)
    shelf = Shelf(
        **{
            f"s{k}": ((96, 96), *(((*rng.integers(10, 86, 2),), int(rng.integers(4, 20))) for _ in range(k)))
            for k in range(12)
        }
    )
    counts = set()
    for (sample,) in designs(shelf, max_layers=99).batches(1):
        assert sample.layers_asked == len(composite_peels(sample.layers)[0])
        counts.add(sample.layers_asked)
    assert len(counts) > 3


def test_crello_rows_as_layerd_prepares_them(tmp_path):
    ghost = element(plain((9, 9, 9), 40, 40, alpha=254))
    thick = [element(plain((k, 0, 0), 60, 60), 30 * k, 20 * k) for k in (1, 2)]
    far = element(plain((7, 0, 0), 20, 20), 260, 160)
    ground = element(plain((90, 90, 90), 200, 300), kind="ColoredBackground")
    rows = [
        design(ground, ghost, *thick, far, sample_id="a", width=300, height=200),
        design(*thick, sample_id="b", width=300, height=200),
        design(ground, sample_id="c", width=300, height=200),
        design(ground, thick[0], sample_id="d", width=300, height=100),
        design(element(b"no image"), ground, sample_id="e", width=300, height=200),
        design(ground, element(plain((5, 5, 5), 50, 50, alpha=200)), sample_id="f", width=300, height=200),
    ]
    save(tmp_path / "data" / "test-00000-of-00001.parquet", *rows)
    chosen = designs(crello(tmp_path, "test", short_side=120, layerd_filters=True))
    found = {sample.sample_id: sample for batch in chosen.batches(2) for sample in batch}
    assert len(chosen) == 6 and list(found) == ["a", "b"]
    assert chosen.skipped == {
        "c": "fewer than 2 layers are left by LayerD's filters",
        "d": "aspect 3.00 of 300x100 is above max_aspect 2.3",
        "e": "element 0 (ImageElement): image: not a readable image (cannot identify its format, "
        "expected PNG, JPEG, WEBP, TIFF, BMP, GIF, AVIF)",
        "f": "fewer than 2 layers are left by LayerD's filters",
    }
    a, b = found["a"], found["b"]
    assert a.image.shape == b.image.shape == (120, 180, 4)
    assert (len(a.layers), a.layers_asked, len(b.layers), b.layers_asked) == (4, 3, 3, 3)
    assert (a.model_size, a.caption, a.kinds[0]) == ((64, 96), "A title", "background")
    assert (a.image[..., 3] == 255).all() and (b.image[0, 0] == 255).all()


# ---- sizes


@given(st.integers(16, 3000), st.integers(16, 3000), st.booleans(), st.sampled_from([32, 64]))
@settings(max_examples=200, deadline=None)
def test_every_stretched_size_keeps_every_bound(height, width, upscale, min_side):
    limits = BucketLimits(min_side, 1024, 640 * 640, 2.3, upscale)
    try:
        h, w = stretched_size((height, width), limits)
    except NoBucketError:
        assert max(height, width) / min(height, width) > 2.3 or (not upscale and min(height, width) < min_side)
        return
    assert h % 32 == w % 32 == 0 and min(h, w) >= min_side and max(h, w) <= 1024 and h * w <= 640 * 640
    assert upscale or (h <= height and w <= width)
    # Rounding a side to a multiple changes the aspect, and by no more than one step.
    assert abs(np.log((h / w) / (height / width))) <= np.log((min(h, w) + 32) / min(h, w))


@pytest.mark.parametrize("canvas", [(192, 192), (128, 192), (192, 128), (64, 64), (1000, 1500)])
def test_canvases_that_fit_a_bucket_are_shown_in_it(canvas):
    assert place(canvas, LIMITS).crop_share == pytest.approx(0.0, abs=1e-9)
    assert stretched_size(canvas, LIMITS) == place(canvas, LIMITS).size


def test_what_has_the_size_stays_as_it_is():
    image = noise(64, 96)
    image[:5, ..., 3] = 0
    assert shown_to_model(image, (64, 96)) is image
    assert at_scored_size([image], (64, 96))[0] is image


def test_a_shape_stretched_there_and_back_stays_in_place():
    layer = disc((100, 150), (40, 90), 24, alpha=180)
    shown = shown_to_model(layer, (64, 96))
    assert shown.shape == (64, 96, 4) and shown.dtype == np.uint8
    # Under alpha 0 nothing is left to bleed, and the colour is that of the shape up to its edge.
    assert (shown[shown[..., 3] == 0] == 0).all()
    assert np.abs(shown[shown[..., 3] > 0][:, :3].astype(int) - (200, 40, 90)).max() <= 1
    (back,) = at_scored_size([shown], (100, 150))
    assert back.shape == layer.shape
    before, after = (image[..., 3].astype(float) / 255 for image in (layer, back))
    assert after.sum() == pytest.approx(before.sum(), rel=0.02)
    for axis in (0, 1):
        places = np.arange(before.shape[axis])
        means = [(alpha.sum(1 - axis) * places).sum() / alpha.sum() for alpha in (before, after)]
        assert means[1] == pytest.approx(means[0], abs=0.05)
    assert np.minimum(before, after).sum() / np.maximum(before, after).sum() > 0.95
    inside = disc((100, 150), (40, 90), 20)[..., 3] > 0
    assert np.abs(back[inside].astype(int) - (200, 40, 90, 180)).max() <= 8
