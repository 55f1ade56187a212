"""Show a bucketed dataset: the contents of a batch, and a contact sheet.

python -m stages.check_data --max-samples 2 --batch-size 1
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import torch
from torch.utils.data import DataLoader

from config.errors import UserError
from config.paths import check_place
from layers.dataset.loaders import create_component_dataloader, create_stack_dataloader
from layers.dataset.manifest import read_header
from layers.imaging.codec import write_png
from layers.imaging.tensors import to_image
from layers.imaging.view import grid


def describe(name: str, value: object) -> str:
    """Describe one entry of a batch in a line: shape, type and range of a tensor, else the value."""
    if isinstance(value, torch.Tensor):
        low, high = value.min().item(), value.max().item()
        return f"  {name}: {tuple(value.shape)} {value.dtype}, {low:.2f} to {high:.2f}"
    return f"  {name}: {value}"


def main(argv: list[str] | None = None) -> int:
    """Print one batch of each loader and write the contact sheet; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root-dir", type=Path, default=Path("data/rgba_layers"))
    parser.add_argument("--split", choices=("train", "val"), default="train")
    parser.add_argument("--max-samples", type=int, default=2, help="samples on the contact sheet")
    parser.add_argument("--batch-size", type=int, default=1)
    parser.add_argument("--out", type=Path, default=Path("data/contact_sheet.png"))
    arguments = parser.parse_args(argv)
    try:
        check_place(arguments.out, "--out", folder=False)
        components = create_component_dataloader(arguments.root_dir, arguments.split, arguments.batch_size)
        stacks = create_stack_dataloader(arguments.root_dir, arguments.split, arguments.batch_size)
        counts = read_header(arguments.root_dir).get("counts", {})
        print(
            f"{arguments.root_dir}: {counts.get('samples')} samples, {counts.get('dropped')} dropped (see the manifest)"
        )
        _describe(components, stacks, arguments.batch_size)
        _draw(stacks, arguments.max_samples, arguments.out)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def _describe(components: DataLoader, stacks: DataLoader, batch_size: int) -> None:
    for title, loader in (("components", components), ("stacks", stacks)):
        print(f"{title}: {len(loader.dataset)} items, {len(loader)} batches of {batch_size}")
        print("\n".join(describe(name, value) for name, value in next(iter(loader)).items()))


def _draw(stacks: DataLoader, max_samples: int, out: Path) -> None:
    rows, titles = [], []
    for index in range(min(max_samples, len(stacks.dataset))):
        item = stacks.dataset[index]
        rows.append([to_image(item["composite"]), *to_image(item["layers"])])
        titles.append(f"{item['id']}: {item['caption']}")
    write_png(out, grid(rows, titles, scale=2))
    print(f"composite and layers of {len(rows)} samples: {out}")


if __name__ == "__main__":
    sys.exit(main())
