"""Decompose images into layers that editors open.

    python -m stages.decompose IMAGE… --layers 3|auto --out DIR --format png,psd,pptx,ora,zip
    python -m stages.decompose IMAGE… --layers 4 --out DIR --model Qwen/Qwen-Image-Layered --offload blocks
    python -m stages.decompose --plan --model Qwen/Qwen-Image-Layered      # how much memory that would take

IMAGE is a file, a folder or a pattern: PNG, JPEG, WebP, TIFF, BMP, GIF, AVIF of any mode and size. Layers have
the image's own resolution and colours, and flatten to it again (inference/restore.py). The model is the one that
ships with the project, another folder such as models/weights/refine, or a hub repository in the released layout.
"""

from __future__ import annotations

import argparse
import importlib
import itertools
import sys
import unicodedata
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from config.base import MOST_LAYERS
from config.errors import UserError
from config.paths import check_place
from inference.decomposer import Decomposer
from inference.images import AUTO, LARGE_EFFORT, SMALL_EFFORT, layer_count, layers_asked, layers_of
from inference.offloading import OFFLOADS
from layers.export import FORMATS, export, outputs
from layers.imaging.codec import ImageError
from layers.imaging.compositing import composite_8bit
from layers.imaging.to_srgb import find_images, read_image_file
from models.precision import PRECISIONS, weights_dtype
from stages.cli import command

SHIPPED = Path(__file__).resolve().parents[1] / "models" / "pretrained" / "model"


class DecomposeError(UserError):
    """An invalid argument, or an image that cannot be decomposed; the message says which and why."""


def check_effort(arguments: argparse.Namespace) -> None:
    """Refuse values of :func:`add_effort_arguments` that are out of bounds, with a :class:`DecomposeError`."""
    for name in ("steps", "tries"):
        value = getattr(arguments, name)
        if value is not None and value < 1:
            raise DecomposeError(f"--{name}: got {value}, expected more")
    if not 0.0 <= arguments.guidance < float("inf"):
        raise DecomposeError(f"--guidance: got {arguments.guidance}, expected a scale from 0 on, 1 for none")


def checked(arguments: argparse.Namespace) -> list[str]:
    """Check the arguments; returns the requested formats.

    Raises:
        DecomposeError: if an argument is out of bounds.
    """
    check_effort(arguments)
    given = {"images": arguments.images, "--layers": arguments.layers, "--out": arguments.out}
    if missing := [name for name, value in given.items() if not value]:
        raise DecomposeError(f"got no {' and no '.join(missing)}; expected images, --layers and --out, or --plan")
    for name, least in (("batch_size", 1), ("recursive", 0)):
        if getattr(arguments, name) < least:
            raise DecomposeError(f"--{name.replace('_', '-')}: got {getattr(arguments, name)}, expected more")
    formats = [name for name in arguments.format.split(",") if name]
    if not formats or (unknown := [name for name in formats if name not in FORMATS]):
        raise DecomposeError(f"--format: got {unknown[0] if formats else 'nothing'!r}, expected {', '.join(FORMATS)}")
    return formats


def targets(paths: Sequence[Path], out: Path) -> dict[Path, Path]:
    """Output folder of each image, ``<out>/<stem>``; a number is added to a stem that is taken."""
    stems = {_same(path.stem) for path in paths}
    taken: set[str] = set()
    found = {}
    for path in paths:
        numbered = (f"{path.stem}_{number}" for number in itertools.count(2))
        for name in itertools.chain([path.stem], (name for name in numbered if _same(name) not in stems)):
            written = {_same(place.name) for place in outputs(out / name, FORMATS)}
            if taken.isdisjoint(written):
                break
        taken |= written
        found[path] = out / name
    return found


def _same(name: str) -> str:
    """Key that is equal for names which the file systems of macOS and Windows treat as one."""
    return unicodedata.normalize("NFC", name).casefold()


def read(paths: Sequence[Path], batch_size: int) -> Iterator[tuple[list[Path], list[np.ndarray], dict[Path, str]]]:
    """Read images in batches, with the reasons of those that cannot be read."""
    for first in range(0, len(paths), batch_size):
        images, refused = {}, {}
        for path in paths[first : first + batch_size]:
            try:
                images[path] = read_image_file(path)
            except ImageError as error:
                refused[path] = str(error)
        yield list(images), list(images.values()), refused


def split_again(
    layers: list[np.ndarray], depth: int, decompose: Callable[[list[np.ndarray]], list[list[np.ndarray]]]
) -> tuple[list[np.ndarray], list[str]]:
    """Decompose each layer again, ``depth`` times over; a part's name contains its layer's (paper, fig. 1)."""
    parts = [(layer, str(index)) for index, layer in enumerate(layers)]
    for _ in range(depth):
        visible = [index for index, (layer, _) in enumerate(parts) if layer[..., 3].any()]
        again = dict(zip(visible, decompose([parts[index][0] for index in visible]), strict=True))
        parts = [
            (part, f"{name}.{number}")
            for index, (_, name) in enumerate(parts)
            for number, part in enumerate(again.get(index, []))
            if part[..., 3].any()
        ]
    return [layer for layer, _ in parts], [f"layer {name}" for _, name in parts]


def open_model(arguments: argparse.Namespace) -> Decomposer:
    """Load the networks by the flags of :func:`add_model_arguments` and ``--guidance``; also for the page.

    Raises:
        GuidanceError: if guidance is requested of a network without text.
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    dtype = weights_dtype(arguments.precision, device)
    model = Decomposer.from_pretrained(arguments.model, device, dtype, arguments.offload)
    model.check_guidance(arguments.guidance)
    return model


def plan(arguments: argparse.Namespace) -> None:
    """Print how much memory decomposing takes, without loading weights.

    Raises:
        DecomposeError: if ``--layers`` or ``--batch-size`` is out of bounds.
    """
    if arguments.batch_size < 1:
        raise DecomposeError(f"--batch-size: got {arguments.batch_size}, expected more")
    count = None if arguments.layers is None else layer_count(arguments.layers, "--layers")
    sizes = (count, arguments.batch_size)
    # Imported by name, because it imports every stage's objective, which nothing else here needs.
    importlib.import_module("stages.plan").print_use(arguments.model, *sizes, arguments.precision, arguments.offload)


def run(arguments: argparse.Namespace) -> None:
    """Read images, decompose them, write their layers."""
    if arguments.plan:
        plan(arguments)
        return
    formats, count = checked(arguments), layer_count(arguments.layers, "--layers")
    try:
        places = targets(find_images(arguments.images), arguments.out)
    except ImageError as error:
        raise DecomposeError(str(error)) from None
    for place in places.values():
        for written in outputs(place, formats):
            check_place(written, "--out", folder=written == place)
    model = open_model(arguments)
    layers_asked(model, count)

    def decompose(images: list[np.ndarray]) -> list[list[np.ndarray]]:
        return layers_of(
            model,
            images,
            count,
            captions=[arguments.caption] * len(images),
            steps=arguments.steps,
            tries=arguments.tries,
            seed=arguments.seed,
            guidance=arguments.guidance,
        )

    refused: dict[Path, str] = {}
    with tqdm(total=len(places), desc="decompose", unit="img", mininterval=1.0) as bar:
        for paths, images, bad in read(list(places), arguments.batch_size):
            refused |= bad
            for path, image, layers in zip(paths, images, decompose(images) if images else [], strict=True):
                names = None
                if arguments.recursive:
                    layers, names = split_again(layers, arguments.recursive, decompose)
                export(layers, places[path], formats, names)
                error = np.abs(composite_8bit(layers).astype(int) - image)[..., :3][image[..., 3] > 0]
                bar.write(f"{path.name}: {len(layers)} layers, recomposed within {error.max(initial=0)} of 255")
                bar.update()
            bar.update(len(bad))
    if refused:
        raise DecomposeError("; ".join(refused.values()))


def add_model_arguments(parser: argparse.ArgumentParser) -> None:
    """Add flags of the networks and their memory; the page has the same."""
    parser.add_argument("--model", default=str(SHIPPED), help="folder or owner/name (default: the one that ships)")
    parser.add_argument(
        "--precision",
        choices=PRECISIONS,
        default="auto",
        help="of the weights (default: auto, bf16 on a GPU that has it, else fp32)",
    )
    parser.add_argument(
        "--offload",
        choices=OFFLOADS,
        default="none",
        help="keep weights in main memory: of whole networks or of all blocks but one; for small GPUs",
    )


def add_effort_arguments(parser: argparse.ArgumentParser) -> None:
    """Add flags of the sampling effort; the page has the same."""
    for name, what in (("steps", "of the sampler"), ("tries", "candidates; the most agreed is used")):
        small, large = getattr(SMALL_EFFORT, name), getattr(LARGE_EFFORT, name)
        usual = f"(default: {small}; of networks for large images {large})"
        parser.add_argument(f"--{name}", type=int, help=f"{what} {usual}")
    parser.add_argument("--guidance", type=float, default=1.0, help="scale of guidance by the caption; 1 is none")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags of the command."""
    parser.add_argument("images", nargs="*", metavar="IMAGE", help="file, folder or pattern")
    parser.add_argument("--layers", help=f"how many, 1 to {MOST_LAYERS}, or {AUTO}")
    parser.add_argument("--out", type=Path, help="folder")
    parser.add_argument("--format", default="png", help=f"one or more of {','.join(FORMATS)} (default: png)")
    parser.add_argument("--recursive", type=int, default=0, metavar="TIMES", help="split each layer again")
    parser.add_argument("--caption", default="", help="what the images show; for models that read text")
    add_model_arguments(parser)
    add_effort_arguments(parser)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--batch-size", type=int, default=4)
    parser.add_argument("--plan", action="store_true", help="print estimated memory, and do nothing")


def main(argv: list[str] | None = None) -> int:
    """Run the command; returns the exit code."""
    return command(run, __doc__, argv, add_arguments)


if __name__ == "__main__":
    sys.exit(main())
