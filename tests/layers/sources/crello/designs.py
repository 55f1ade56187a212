"""Crello designs and the parquet files they are written to, for all tests that read some."""

import io
import json
import math

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from layers.sources.crello.reader import CrelloSource
from layers.sources.location import Location

IMAGE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
NUMBERS = pa.list_(pa.float32())
GEOMETRY = ("left", "top", "width", "height", "angle")
# Neither is in the order of the published files: only the names in the metadata may count.
TYPES_5 = ["TextElement", "MaskElement", "ColoredBackground", "SvgElement", "ImageElement", "VideoElement"]
TYPES_4 = ["svgElement", "imageElement", "textElement", "coloredBackground", "maskElement"]
SIDES_4 = ["30", "1080", "24", "20", "16"]


def png(image):
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, format="PNG")
    return buffer.getvalue()


def noise(height, width, seed=0, alpha=None):
    image = np.random.default_rng(seed).integers(1, 256, (height, width, 4), dtype=np.uint8)
    if alpha is not None:
        image[..., 3] = alpha
    return image


def plain(rgb, height=2, width=2, alpha=255):
    return np.full((height, width, 4), (*rgb, alpha), np.uint8)


def element(image, left=0.0, top=0.0, width=None, height=None, kind="ImageElement", **more):
    """One element in the units of version 5, its image as bytes, as an array or None; unscaled unless told."""
    data = png(image) if isinstance(image, np.ndarray) else image
    shape = image.shape if isinstance(image, np.ndarray) else (1, 1)
    width, height = shape[1] if width is None else width, shape[0] if height is None else height
    box = {"left": left, "top": top, "width": width, "height": height, "angle": 0.0, "opacity": 1.0}
    return {"type": kind, "image": data, "text": "", "color": [], **box, **more}


def design(*elements, width=30, height=20, sample_id="a", **more):
    return {"id": sample_id, "title": "A title", "canvas": (width, height), "elements": elements, **more}


def label(names, of_list=False):
    feature = {"names": names, "_type": "ClassLabel"}
    return {"feature": feature, "_type": "Sequence"} if of_list else feature


def as_row(row, version, types):
    width, height = row["canvas"]
    lists = {name: [item[name] for item in row["elements"]] for name in (*GEOMETRY, "opacity", "text", "color")}
    if version == 4:
        for name, unit in {"left": width, "top": height, "width": width, "height": height}.items():
            lists[name] = [value / unit for value in lists[name]]
        lists["angle"] = [math.radians(value) for value in lists["angle"]]
        width, height = SIDES_4.index(str(width)), SIDES_4.index(str(height))
    names = [item["type"] if version == 5 else item["type"][0].lower() + item["type"][1:] for item in row["elements"]]
    lists["type"] = [types.index(name) for name in names]
    lists["image"] = [item["image"] and {"bytes": item["image"], "path": None} for item in row["elements"]]
    out = {"id": row["id"], "title": row["title"], "length": len(names), "canvas_width": width, "canvas_height": height}
    preview = row.get("preview") and {"bytes": row["preview"], "path": None}
    return out | lists | {"preview": preview} | row.get("override", {})


def save(path, *rows, version=5, types=None, group_rows=2, without=(), metadata=None):
    """Write designs as one parquet file in the form of a version; ``override`` in a design replaces stored values."""
    types = types or (TYPES_5 if version == 5 else TYPES_4)
    colour = pa.string() if version == 5 else pa.float32()
    fields = {name: pa.int64() for name in ("length", "canvas_width", "canvas_height")}
    fields |= dict.fromkeys((*GEOMETRY, "opacity"), NUMBERS) | {"id": pa.string(), "title": pa.string()}
    fields |= {"type": pa.list_(pa.int64()), "image": pa.list_(IMAGE), "text": pa.list_(pa.string())}
    fields |= {"color": pa.list_(pa.list_(colour)), "preview": IMAGE}
    features = {"type": label(types, True), "id": {"dtype": "string", "_type": "Value"}}
    if version == 4:
        features |= {"canvas_width": label(SIDES_4), "canvas_height": label(SIDES_4)}
    info = metadata if metadata is not None else json.dumps({"info": {"features": features}})
    schema = pa.schema([(name, kind) for name, kind in fields.items() if name not in without])
    stored = [{key: value for key, value in as_row(row, version, types).items() if key not in without} for row in rows]
    path.parent.mkdir(parents=True, exist_ok=True)
    table = pa.Table.from_pylist(stored, schema=schema.with_metadata({"huggingface": info} if info else {}))
    pq.write_table(table, path, row_group_size=group_rows)


def source(root, split="all", short_side=None, layerd_filters=False):
    return CrelloSource(
        Location(root, "data.crello"), split=split, short_side=short_side, layerd_filters=layerd_filters
    )


def read(tmp_path, *elements, version=5, short_side=None, layerd_filters=False, **more):
    save(tmp_path / "data" / "train-00000-of-00001.parquet", design(*elements, **more), version=version)
    return source(tmp_path, short_side=short_side, layerd_filters=layerd_filters).read("a")


def drawn(tmp_path, item, **more):
    """The element's layer; white lies below it unless it covers the canvas."""
    return read(tmp_path, item, **more).layers[-1].image


def placed(image, top, left, height=20, width=30):
    canvas = np.zeros((height, width, 4), np.uint8)
    canvas[top : top + image.shape[0], left : left + image.shape[1]] = image
    return canvas


GREY = plain((90, 90, 90), 20, 30)


def many(count, first=0):
    return [design(element(plain((i, 0, 0), 20, 30)), sample_id=f"id{i:02d}") for i in range(first, first + count)]
