"""Reader of PrismLayers, PrismLayersPro, PrismLayersPlus and PrismLayersReal (Hugging Face ``artplus/*``).

One row of a parquet file is one design:

    id | sample_id                         may be absent: <file's stem>-<row>
    whole_image, whole_caption             the flat image, which becomes the preview, and the caption
    base_image, base_caption               the background; its size is the canvas's
    layer_count                            number of layers over it, bottom to top
    layer_00 | layer_00_image, ...         a layer's crop; slots that are not used are null
    layer_00_box, ...                      [x0, y0, x1, y1] in pixels, x1 and y1 exclusive; the crop is resized to it
    layer_00_caption, ...                  in words

An image is {"bytes", "path"}, bytes, or "data:image/png;base64,...". The same as folders:

    <root>/<id>/metadata.json              whole_caption, ...; "layers": [{"layer_idx", "image_path", "box", "caption",
                                           "type"}, ...] or the columns' names
    <root>/<id>/whole_image.png, base_image.png, layer_00.png, ...

Splits, which are styles in PrismLayersPro, are prefixes of file names, or folders.
"""

from __future__ import annotations

import re
from itertools import islice
from pathlib import PurePosixPath

from config.errors import SampleError, UserError
from layers.imaging.stack import LayeredSample
from layers.sources.base import Source
from layers.sources.location import Location
from layers.sources.prism.folders import METADATA, PrismFolders
from layers.sources.prism.row import compose
from layers.sources.prism.table import PrismTable

# Number of folders that are checked before the whole tree is searched for parquet files.
LOOKED_AT = 20


class PrismLayersSource(Source):
    """PrismLayers below one root.

    Parquet is read fastest in the order of :meth:`sample_ids`; in any other, each row costs the decoding of all earlier
    rows of its row group.

    Args:
        root: folder with parquet files anywhere below, or with one folder per sample.
        split: restricts to files ``<split>-<i>-of-<n>.parquet`` and ``<split>.parquet`` and those in folders of this
            name, or to the samples in this folder; ``None`` takes all.

    Raises:
        UserError: if there are none.
    """

    def __init__(self, root: Location, *, split: str | None) -> None:
        self.root = root
        self._rows: PrismFolders | PrismTable
        try:
            self._rows = _opened(root, split)
        except SampleError as error:
            raise UserError(f"{root.key}: split {split!r} cannot be used ({error})") from None

    def sample_ids(self) -> list[str]:
        """Ids of all rows in the order of files and rows, or the names of all folders, sorted.

        Raises:
            UserError: if a parquet file cannot be read or is not of PrismLayers.
        """
        return self._rows.ids()

    def read(self, sample_id: str) -> LayeredSample:
        """Read one sample, background first.

        Raises:
            SampleError: with the missing or broken part.
        """
        return compose(self.root, sample_id, self._rows.row(sample_id))

    def signature(self, sample_id: str) -> str:
        """String that changes when the parquet file or a file of the folder does."""
        return self._rows.signature(sample_id)


def _opened(root: Location, split: str | None) -> PrismFolders | PrismTable:
    folders = PrismFolders(root, split or "")
    names = folders.ids()
    if any(map(folders.holds, islice(names, LOOKED_AT))):
        return folders
    tables = root.find([".parquet"])
    wanted = [name for name in tables if _of_split(name, split)]
    if wanted:
        return PrismTable(root, wanted)
    if tables:
        found = ", ".join(sorted({PurePosixPath(name).name for name in tables})[:5])
        raise UserError(f"{root.key}: {root.url} has no parquet file of split {split!r}; expected one as in {found}")
    if any(map(folders.holds, names)):
        return folders
    raise UserError(
        f"{root.key}: {root.url} has neither parquet files nor folders with {METADATA}"
        f"{f' in folder {split}' if split else ''}; expected PrismLayers"
    )


def _of_split(name: str, split: str | None) -> bool:
    path = PurePosixPath(name)
    if any(part.startswith(".") for part in path.parts):
        return False
    return (
        split is None
        or split in (path.stem, *path.parts[:-1])
        or re.fullmatch(rf"{re.escape(split)}-[0-9]+-of-[0-9]+(-[0-9a-f]+)?", path.stem) is not None
    )
