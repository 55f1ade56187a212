"""Fuzzing of every image reader with mutated files: each outcome must be an image or one sentence.

    python -m benchmarks.fuzz_images [--count 1000] [--seed 0] [--keep DIR]

Images of all formats and modes, with profiles, EXIF, text and several frames, are mutated: bytes flipped, the end cut,
pieces swapped, doubled or overwritten, lengths made huge. Each goes through the readers of ``stages.decompose`` (from
a file), the page's upload route, the served model and the datasets. Mutation k of a seed is always the same. Counts by
reader and the longest time are printed. The exit code is 1 if any outcome is neither; ``--keep`` saves those files.
"""

from __future__ import annotations

import argparse
import base64
import io
import struct
import sys
import tempfile
import time
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import gradio as gr
import numpy as np
from PIL import Image, ImageCms
from starlette.testclient import TestClient
from tqdm import tqdm

from app.server import Shelf, build_server
from layers.imaging.codec import FORMATS, ImageError, decode_rgba
from stages.decompose import read
from tracking.serving import RequestError
from tracking.serving import decode_image as served

SIZE = (64, 48)
LONGEST = 400  # characters of a sentence
Reader = Callable[[bytes], np.ndarray | str]


def originals() -> list[bytes]:
    """Intact files: every format with its modes, and metadata beside pixels."""
    across, down = np.meshgrid(np.linspace(0, 1, SIZE[0]), np.linspace(0, 1, SIZE[1]))
    values = np.stack([across, down, 1 - across, 0.3 + 0.7 * down], axis=-1)
    rgba = Image.fromarray((values * 255).astype(np.uint8))
    flat, grey = rgba.convert("RGB"), Image.fromarray((values[..., 0] * 65535).astype(np.uint16))
    exif = Image.Exif()
    exif.update({0x0112: 6, 0x010F: "a maker", 0x0131: "a program"})
    profile = bytearray(ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes())
    profile[24:36] = bytes(12)  # the creation time, which would make files differ from run to run
    said = {"exif": exif, "icc_profile": bytes(profile)}
    wanted = [
        *((image, "PNG", said) for image in (rgba, flat, rgba.convert("P"), rgba.convert("LA"), grey)),
        *((image, "JPEG", said) for image in (flat, flat.convert("L"), flat.convert("CMYK"))),
        *((flat, "TIFF", {"compression": name}) for name in ("raw", "tiff_lzw", "tiff_deflate", "jpeg")),
        *((image, "TIFF", {}) for image in (grey, rgba, flat.convert("LAB"))),
        *((rgba, "WEBP", {"lossless": lossless} | said) for lossless in (True, False)),
        *(
            (flat, kind, {"save_all": True, "append_images": [flat.rotate(180)]})
            for kind in ("MPO", "GIF", "PNG", "TIFF", "WEBP", "AVIF")
        ),
        (flat, "JPEG", {"progressive": True}),
        (rgba, "AVIF", said),
        (flat, "BMP", {}),
        (rgba.convert("P"), "GIF", {}),
    ]
    files = []
    for image, kind, options in wanted:
        file = io.BytesIO()
        image.copy().save(file, kind, **options)  # a copy, because saving a JPEG changes the image's settings
        files.append(file.getvalue())
    text = b"zTXt" + b"note\0\0" + zlib.compress(bytes(2_000_000))
    files.append(
        files[0][:33] + struct.pack(">I", len(text) - 4) + text + struct.pack(">I", zlib.crc32(text)) + files[0][33:]
    )
    return files


def mutated(data: bytes, rng: np.random.Generator) -> bytes:
    """Mutate a file one to three times."""
    for _ in range(rng.integers(1, 4)):
        data = MUTATIONS[rng.integers(len(MUTATIONS))](data, rng)
    return data


def _flipped(data: bytes, rng: np.random.Generator) -> bytes:
    spoilt = np.frombuffer(data, np.uint8).copy()
    # Half of them near the start, in the headers.
    most = len(spoilt) if rng.random() < 0.5 else min(len(spoilt), 200)
    places = rng.integers(0, max(most, 1), rng.integers(1, 17))
    if len(spoilt):
        spoilt[places] ^= rng.integers(1, 256, len(places), dtype=np.uint8)
    return spoilt.tobytes()


def _cut(data: bytes, rng: np.random.Generator) -> bytes:
    return data[: rng.integers(0, len(data) + 1)]


def _pieces(data: bytes, rng: np.random.Generator) -> tuple[bytes, bytes, bytes, bytes]:
    first, second, third = np.sort(rng.integers(0, len(data) + 1, 3))
    return data[:first], data[first:second], data[second:third], data[third:]


def _swapped(data: bytes, rng: np.random.Generator) -> bytes:
    start, one, other, rest = _pieces(data, rng)
    return start + other + one + rest


def _doubled(data: bytes, rng: np.random.Generator) -> bytes:
    start, one, other, rest = _pieces(data, rng)
    return start + one + one + other + rest


def _overwritten(data: bytes, rng: np.random.Generator) -> bytes:
    start, one, *rest = _pieces(data, rng)
    return start + rng.bytes(len(one)) + b"".join(rest)


def _huge(data: bytes, rng: np.random.Generator) -> bytes:
    at = rng.integers(0, max(len(data) - 4, 1))
    return data[:at] + struct.pack(">I", int(rng.choice([0, 0x7FFFFFFF, 0xFFFFFFFF, 0x00010000]))) + data[at + 4 :]


def _chunks_swapped(data: bytes, rng: np.random.Generator) -> bytes:
    """Reorder the chunks of a PNG; in other formats reorder pieces that begin at a marker's byte."""
    parts = data.split(b"IDAT" if data.startswith(b"\x89PNG") else b"\xff")
    if len(parts) < 3:
        return _swapped(data, rng)
    one, other = rng.integers(0, len(parts), 2)
    parts[one], parts[other] = parts[other], parts[one]
    return (b"IDAT" if data.startswith(b"\x89PNG") else b"\xff").join(parts)


MUTATIONS = (_flipped, _flipped, _cut, _swapped, _chunks_swapped, _doubled, _overwritten, _huge)


def mutations(count: int, seed: int) -> Iterator[bytes]:
    """Yield ``count`` mutated files, from each original in turn."""
    files = originals()
    for number in range(count):
        yield mutated(files[number % len(files)], np.random.default_rng((seed, number)))


def readers(folder: Path) -> dict[str, Reader]:
    """Readers of users' images, by name; each returns pixels, or the sentence of its error."""
    uploads = Shelf()
    page = TestClient(build_server(gr.Blocks(), uploads, Shelf(), {}), base_url="http://127.0.0.1")

    def decompose(data: bytes) -> np.ndarray | str:
        path = folder / "image"
        path.write_bytes(data)
        ((_, images, refused),) = read([path], 1)
        return images[0] if images else refused[path]

    def upload(data: bytes) -> np.ndarray | str:
        answer = page.post("/image", content=data)
        if answer.status_code == 200:
            return uploads.take(answer.text)
        assert answer.status_code == 400, answer.status_code
        return answer.text

    def request(data: bytes) -> np.ndarray | str:
        try:
            return served(base64.b64encode(data).decode(), "image 0")
        except RequestError as error:
            return error.message

    def dataset(data: bytes) -> np.ndarray | str:
        try:
            return decode_rgba(data, "layer.png")
        except ImageError as error:
            return str(error)

    return {"decompose": decompose, "page": upload, "served": request, "dataset": dataset}


def outcome(reader: Reader, data: bytes) -> str:
    """Outcome of a reader on a file: ``image``, ``sentence``, or a description of anything else."""
    try:
        found = reader(data)
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    if isinstance(found, np.ndarray):
        whole = found.ndim == 3 and found.shape[2] == 4 and found.dtype == np.uint8 and found.size > 0
        return "image" if whole else f"an array {found.shape} of {found.dtype}"
    plain = isinstance(found, str) and 0 < len(found) <= LONGEST and found.isprintable() and "0x" not in found
    return "sentence" if plain else f"no sentence: {found!r}"


def fuzz(count: int, seed: int, keep: Path | None = None) -> tuple[dict[str, Counter], list[str], float]:
    """Read all mutations; returns counts of outcomes by reader, other outcomes, and the most seconds of a reading."""
    counts: dict[str, Counter] = {}
    faults, slowest = [], 0.0
    with tempfile.TemporaryDirectory() as folder:
        named = readers(Path(folder))
        for number, data in enumerate(tqdm(mutations(count, seed), total=count, unit="image", mininterval=1.0)):
            for name, reader in named.items():
                began = time.perf_counter()
                said = outcome(reader, data)
                slowest = max(slowest, time.perf_counter() - began)
                good = said in ("image", "sentence")
                counts.setdefault(name, Counter())[said if good else "fault"] += 1
                if not good:
                    faults.append(f"{name}, mutation {number} of seed {seed}: {said}")
                    if keep is not None:
                        keep.mkdir(parents=True, exist_ok=True)
                        (keep / f"{seed}_{number}").write_bytes(data)
    return counts, faults, slowest


def main(argv: list[str] | None = None) -> int:
    """Fuzz and print the outcomes; returns 1 if any was neither an image nor a sentence."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--keep", type=Path, help="folder for files whose outcome is neither")
    arguments = parser.parse_args(argv)
    counts, faults, slowest = fuzz(arguments.count, arguments.seed, arguments.keep)
    for name, found in counts.items():
        print(f"{name}: {', '.join(f'{number} {what}' for what, number in sorted(found.items()))}")
    print(f"{arguments.count} images from {len(originals())} of {', '.join(FORMATS)}; slowest reading {slowest:.2f} s")
    print("\n".join(faults))
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
