"""Rows of the PrismLayers form and their parquet files, for the tests of the source."""

import base64
import io

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from layers.sources.location import Location
from layers.sources.prism.reader import PrismLayersSource

WIDTH, HEIGHT = 16, 12
IMAGE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])


def solid(colour, size=(WIDTH, HEIGHT)):
    return np.full((size[1], size[0], 4), colour, np.uint8)


def png(pixels):
    buffer = io.BytesIO()
    Image.fromarray(np.asarray(pixels, np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()


def struct(pixels):
    return {"bytes": png(pixels), "path": "some.png"}


def coded(pixels):
    return "data:image/png;base64," + base64.b64encode(png(pixels)).decode()


def distinct(height, width, alpha=255):
    """A crop of which every pixel is another, so that any shift shows."""
    rows, columns = np.indices((height, width))
    return np.stack([rows * 9 + 1, columns * 9 + 2, rows + columns, np.full_like(rows, alpha)], -1).astype(np.uint8)


def a_row(**changes):
    row = {
        "id": "one",
        "style_category": "toy",
        "whole_image": struct(solid(7, (32, 24))),
        "whole_caption": " a poster ",
        "base_image": struct(solid((10, 20, 30, 255))),
        "base_caption": "a wall",
        "layer_count": 2,
        "layer_00": struct(distinct(4, 5)),
        "layer_00_box": [3, 2, 8, 6],
        "layer_00_caption": "a cat",
        "layer_01": struct(distinct(3, 3, 128)),
        "layer_01_box": [10, 8, 13, 11],
        "layer_01_caption": 'The text "Hello"',
        "layer_02": None,
        "layer_02_box": None,
        "layer_02_caption": None,
    }
    return {key: value for key, value in (row | changes).items() if value is not ...}


def table(root, *rows, name="data/train-00000-of-00001.parquet", group=100, **types):
    """Write rows; Arrow infers the types but of columns that are null throughout, and of those given."""
    columns = dict.fromkeys(key for row in rows for key in row)
    arrays = {key: pa.array([row.get(key) for row in rows], type=types.get(key)) for key in columns}
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(arrays), path, row_group_size=group)


def opened(root, split=None):
    return PrismLayersSource(Location(root, "prepare_buckets.root"), split=split)


def read_one(root, *rows, **types):
    table(root, *rows, **types)
    source = opened(root)
    return source.read(source.sample_ids()[0])


def on_canvas(crop, left, top):
    canvas = np.zeros((HEIGHT, WIDTH, 4), np.uint8)
    canvas[top : top + crop.shape[0], left : left + crop.shape[1]] = crop
    return canvas
