"""Preparation of a whole source as a bucketed dataset; work that is already done is not repeated."""

from __future__ import annotations

import inspect
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from fractions import Fraction
from itertools import islice
from pathlib import Path
from typing import Any

from config.errors import UserError
from config.paths import visible
from layers.dataset.digest import text_digest
from layers.dataset.manifest import MANIFEST, Ledger, journal_path, plain, states_paths
from layers.dataset.splits import SPLITS
from layers.dataset.storage import SHARDS, mark, present, remove_strays
from layers.files import locked, sync_all, write_whole
from layers.preparation.fanout import fan_out
from layers.preparation.sample import Chunk, Preparation, PrepareChunk
from layers.sources.base import Source

# Samples per chunk: few, so that all processes end at about the same time; a chunk costs about a millisecond.
FILES_CHUNK = 2
CHECK_CHUNK = 256
# Folders and modules of layers/ that decide what is written for a sample; all readers, since they share modules.
PIXEL_CODE = ("imaging", "sources", "dataset/buckets.py", "dataset/storage.py", "preparation/cleaning.py")
PIXEL_CODE += ("preparation/patches.py", "preparation/sample.py")


class OutputError(UserError):
    """The output folder holds files that are no bucketed dataset."""


@dataclass
class Summary:
    """Statistics of a prepared dataset, gathered record by record.

    Attributes:
        samples: count by split.
        reasons: count of dropped samples by reason, with file names and numbers removed from the reason.
        buckets: by (split, H, W, L): count, sum of crop shares, sum of scales.
        layers: counts of ``kept``, ``merged`` and dropped layers (``empty``, ``hidden``, ``unchanging``).
        compared: samples whose recomposition was compared with a preview.
        mismatched: difference by id, where the recomposition differs from the preview by more than the tolerance.
        change: the largest change, in 8-bit levels, that cleaning and grouping made to a flat image.
        noted: count of samples by note.
        reused: samples that needed no work.
        split_pixels: by digest of a sample's layers, the splits with such a sample.
    """

    samples: Counter = field(default_factory=Counter)
    reasons: Counter = field(default_factory=Counter)
    buckets: dict[tuple[str, int, int, int], list[Fraction]] = field(
        default_factory=lambda: defaultdict(lambda: [Fraction()] * 3)
    )
    layers: Counter = field(default_factory=Counter)
    compared: int = 0
    mismatched: dict[str, float] = field(default_factory=dict)
    change: float = 0.0
    noted: Counter = field(default_factory=Counter)
    reused: int = 0
    split_pixels: dict[str, set[str]] = field(default_factory=lambda: defaultdict(set))

    @property
    def shared(self) -> int:
        """Number of designs that are in more than one split, under different ids."""
        return sum(len(splits) > 1 for splits in self.split_pixels.values())

    @property
    def dropped(self) -> int:
        """Number of samples that could not be used."""
        return sum(self.reasons.values())

    def add(self, record: Mapping[str, Any], tolerance: float) -> None:
        """Count one record."""
        if "reason" in record:
            self.reasons[kind_of_reason(record["reason"])] += 1
            return
        self.samples[record["split"]] += 1
        self.split_pixels[record["pixels"]].add(record["split"])
        bucket = self.buckets[record["split"], record["height"], record["width"], len(record["layers"])]
        for index, value in enumerate((1, record["crop_share"], record["scale"])):
            # Exact sums: rounded ones would depend on the order, and so on where a run was killed.
            bucket[index] += Fraction(value)
        self.layers["kept"] += len(record["layers"])
        self.layers["merged"] += record["merged_layers"]
        self.layers.update(record["dropped_layers"])
        self.change = max(self.change, record["change"])
        if "preview_error" in record:
            self.compared += 1
            if record["preview_error"] > tolerance:
                self.mismatched[record["id"]] = record["preview_error"]
        self.noted.update({note.split('"')[0].strip() for note in record.get("notes", ())})


def kind_of_reason(reason: str) -> str:
    """A reason without file names and numbers, which differ by sample, so that a report stays short."""
    words = reason.split(": ", 1)[1] if ": " in reason and "." in reason.split(": ", 1)[0] else reason
    return " ".join("#" if any(letter.isdigit() for letter in word) else word for word in words.split())[:120]


def check_output(root: Path) -> None:
    """Raise an error for a folder that holds files and is not a bucketed dataset.

    Raises:
        OutputError: with the folder's path.
    """
    ours = (root / MANIFEST).is_file() or journal_path(root).is_file()
    if root.is_dir() and any(visible(path.name) for path in root.iterdir()) and not ours:
        raise OutputError(
            f"prepare_buckets.output_root: {root} is not empty and has no {MANIFEST}; expected a new one or a dataset"
        )


@dataclass(frozen=True)
class _Check:
    """Returns the ids of earlier records that are still valid: source files and written files are unchanged."""

    source: Source
    root: Path

    def __call__(self, records: Sequence[tuple[dict[str, Any], str]]) -> list[str]:
        sizes: dict[str, int] = {}
        return [
            record["id"]
            for record, state in records
            if self.source.signature(record["id"]) == state
            and ("reason" in record or present(self.root, record, sizes))
            # For records of a killed run: DVC may have replaced the images, or a power cut may have emptied them.
            and ("mark" not in record or record["mark"] == mark(self.root, record))
        ]


def prepare_dataset(
    source: Source,
    splits: Mapping[str, str],
    preparation: Preparation,
    root: str | Path,
    *,
    shard_samples: int | None = None,
    jobs: int = 1,
    cluster: str = "local",
    settings: Mapping[str, Any] | None = None,
    progress: Callable[[int], None] = lambda done: None,
) -> Summary:
    """Prepare all samples of a source that are missing, and write the manifest.

    A second run, after samples were added or changed or a run was killed, keeps all valid results. The output depends
    on samples and preparation alone, not on jobs, cluster or interruptions. Only the number of a sample's tar also
    depends on when the sample was added.

    Args:
        source: the reader.
        splits: id to split, in the order of work; readers of tables are fastest in their own order.
        preparation: settings of the preparation of every sample.
        root: folder of the dataset.
        shard_samples: samples per tar; ``None`` writes files.
        jobs: see :func:`layers.preparation.fanout.fan_out`.
        cluster: likewise.
        settings: written to the manifest's first line.
        progress: called with the number of samples done since the last call.

    Raises:
        OutputError: if ``root`` holds files and no bucketed dataset.
        LockedError: if another run writes to it.
    """
    root = Path(root).resolve()
    lock = locked(journal_path(root).with_suffix(".lock"), f"prepare_buckets.output_root: another run into {root}")
    summary, storage = Summary(), "files" if shard_samples is None else "shards"
    with lock, closing(_ledger(root, f"{preparation.recipe()}:{storage}:{_code(source)}")) as ledger:
        kept = _still_valid(ledger, source, splits, root, jobs=jobs, cluster=cluster)
        kept = _forget_others(ledger, _whole_shards(ledger, kept) if storage == "shards" else kept)
        for name in kept:
            summary.add(ledger.record(name), preparation.preview_tolerance)
        summary.reused = len(kept)
        progress(len(kept))
        missing = [(name, split) for name, split in splits.items() if name not in kept and plain(name) == name]
        for record in _not_utf8(splits):
            ledger.add(record)
            summary.add(record, preparation.preview_tolerance)
        chunks = _chunks(missing, shard_samples, _next_shards(ledger, kept))
        work = PrepareChunk(source, preparation, root)
        for chunk, records in fan_out(work, chunks, jobs=jobs, cluster=cluster):
            for record in records:
                ledger.add(record if "reason" in record else {**record, "mark": mark(root, record)})
                summary.add(record, preparation.preview_tolerance)
            progress(len(chunk.sample_ids))
        counts = {"samples": dict(sorted(summary.samples.items())), "dropped": summary.dropped}
        remove_strays(root, _images(ledger))
        sync_all()  # images were written without a sync of each
        ledger.finish({"settings": settings or {}, "counts": counts})
    return summary


def _not_utf8(splits: Mapping[str, str]) -> Iterator[dict[str, str]]:
    """Records of samples whose ids cannot be written to the manifest."""
    for name, split in splits.items():
        if plain(name) != name:
            yield {"id": plain(name), "split": split, "reason": "the id is not valid UTF-8", "state": ""}


def _ledger(root: Path, recipe: str) -> Ledger:
    check_output(root)
    _forget_other_code(root)
    return Ledger(root, recipe)


def _forget_other_code(root: Path) -> None:
    """Drop records that were prepared by another version of the code: equal settings may have given other pixels."""
    layers = Path(__file__).resolve().parents[1]
    modules = (path for name in PIXEL_CODE for path in _modules_of(layers / name))
    text = b"".join(module.read_bytes() for module in modules)
    digest = text_digest(text, 64)
    journal = journal_path(root)
    code = journal.with_suffix(".code")
    if not code.is_file() or code.read_text() != digest:
        for path in (journal, *states_paths(root)):
            path.unlink(missing_ok=True)
        write_whole(code, digest.encode(), alone=True)


def _modules_of(place: Path) -> list[Path]:
    return sorted(place.rglob("*.py")) if place.is_dir() else [place]


def _code(source: Source) -> str:
    """Digest of the reader's modules (all of its folder, if any), since a changed reader may give other pixels."""
    module = Path(inspect.getfile(type(source)))
    own_folder = module.stem == "reader"
    text = b"".join(path.read_bytes() for path in _modules_of(module.parent if own_folder else module))
    return text_digest(text, 16)


def _still_valid(
    ledger: Ledger, source: Source, splits: Mapping[str, str], root: Path, *, jobs: int, cluster: str
) -> set[str]:
    records = (
        (record, ledger.states[name]) for name in splits if name in ledger.known and (record := ledger.record(name))
    )
    same_side = ((record, state) for record, state in records if record["split"] == splits[record["id"]])
    tasks = iter(lambda: list(islice(same_side, CHECK_CHUNK)), [])
    return {name for _, names in fan_out(_Check(source, root), tasks, jobs=jobs, cluster=cluster) for name in names}


def _forget_others(ledger: Ledger, kept: set[str]) -> set[str]:
    """Drop all samples but the valid ones from the ledger; returns those that remain."""
    for name in set(ledger.known) - kept:
        ledger.forget(name)
    return kept


def _whole_shards(ledger: Ledger, kept: set[str]) -> set[str]:
    """Drop samples whose tar also holds invalid ones: a tar is either reused or written anew as a whole."""
    stale = set()
    for name in set(ledger.known) - kept:
        record = ledger.record(name)
        if "bucket" in record:
            stale.add(record["composite"]["path"])
    return {
        name for name in kept if "reason" in (record := ledger.record(name)) or record["composite"]["path"] not in stale
    }


def _next_shards(ledger: Ledger, kept: Iterable[str]) -> dict[str, int]:
    following = dict.fromkeys(SPLITS, 0)
    for name in kept:
        record = ledger.record(name)
        if "bucket" in record and record["composite"]["path"].startswith(f"{SHARDS}/"):
            number = int(Path(record["composite"]["path"]).stem.rsplit("-", 1)[1])
            following[record["split"]] = max(following[record["split"]], number + 1)
    return following


def _chunks(
    samples: Sequence[tuple[str, str]], shard_samples: int | None, next_shards: Mapping[str, int]
) -> list[Chunk]:
    chunks = []
    size = shard_samples or FILES_CHUNK
    for split in SPLITS:
        names = [name for name, side in samples if side == split]
        for number, first in enumerate(range(0, len(names), size), next_shards[split]):
            chunks.append(Chunk(split, tuple(names[first : first + size]), number if shard_samples else None))
    return chunks


def _images(ledger: Ledger) -> Iterator[str]:
    for name in ledger.known:
        record = ledger.record(name)
        if "bucket" in record:
            for place in (*record["layers"], record["composite"]):
                yield place["path"]
