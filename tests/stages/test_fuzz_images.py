"""Spoilt images through all readers; benchmarks/fuzz_images.py runs more of them."""

from benchmarks.fuzz_images import fuzz, mutations, originals, outcome, readers

COUNT = 200
ANIMATED = 5  # of the originals: a GIF, PNG, TIFF, WebP and AVIF of two frames


def test_every_outcome_is_a_image_or_one_sentence():
    counts, faults, slowest = fuzz(COUNT, seed=0)
    assert not faults
    assert set(counts) == {"decompose", "page", "served", "dataset"} and slowest < 20.0
    for found in counts.values():
        assert sum(found.values()) == COUNT and found["image"] > 5 and found["sentence"] > 5


def test_what_is_spoilt_is_whole_before_and_always_the_same(tmp_path):
    reader = readers(tmp_path)["decompose"]
    outcomes = [outcome(reader, data) for data in originals()]
    assert outcomes.count("image") == len(outcomes) - ANIMATED and outcomes.count("sentence") == ANIMATED
    assert list(mutations(40, 3)) == list(mutations(40, 3)) != list(mutations(40, 4))
