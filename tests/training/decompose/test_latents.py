import pickle
import shutil
from itertools import islice

import pytest
import torch
from accelerate import Accelerator

from layers.dataset.batches import BucketBatches
from layers.dataset.digest import digest
from layers.dataset.loaders import StackDataset
from layers.dataset.manifest import DatasetError
from models.vae import latents
from models.vae.latents import decode_layers, empty_latents, encode_stack, stacks_at_once
from tests.support.networks import tiny_vae
from training.decompose.latents import both_splits, cached_stacks, encode_missing, open_cache
from training.engine.cache import DamagedCacheError


@pytest.fixture
def vae(tmp_path):
    network = tiny_vae()
    network.save_pretrained(tmp_path / "vae")
    return network


def load(vae, root, tmp_path, dtype=torch.float32):
    cache = open_cache(digest(tmp_path / "vae"), tmp_path / "cache", dtype)
    dataset = StackDataset(root, "val")
    skipped = encode_missing(vae, dataset, cache, Accelerator(cpu=True), dtype)
    return cached_stacks(dataset, cache), skipped


def shards(tmp_path):
    return {path: path.stat().st_mtime_ns for path in (tmp_path / "cache").rglob("*.safetensors")}


def test_latents_are_those_of_the_network_and_are_encoded_once(vae, bucketed_root, tmp_path):
    first, _ = load(vae, bucketed_root, tmp_path)
    written = shards(tmp_path)
    again, _ = load(vae, bucketed_root, tmp_path)
    assert shards(tmp_path) == written and len(written) == 1
    dataset = StackDataset(bucketed_root, "val")
    assert first.ids == [dataset[i]["id"] for i in range(len(dataset))] and first.keys == list(dataset.keys)
    for index, item in enumerate(map(dataset.__getitem__, range(len(dataset)))):
        ours = encode_stack(vae, item["composite"][None], item["layers"][None])[0]
        assert torch.allclose(first.stack(index), ours, atol=1e-5)
        assert torch.equal(first.stack(index), again.stack(index))
    batch = first.batch([0, 0])
    assert batch["id"] == [first.ids[0]] * 2 and torch.equal(batch["latents"][1], first.stack(0))


def test_other_weights_or_other_pixels_are_encoded_anew_and_old_ones_are_found_again(vae, bucketed_root, tmp_path):
    first, _ = load(vae, bucketed_root, tmp_path)
    written = shards(tmp_path)
    bias = vae.quant_conv.bias.detach().clone()
    with torch.no_grad():
        vae.quant_conv.bias.add_(1.0)
    vae.save_pretrained(tmp_path / "vae")
    assert not torch.equal(load(vae, bucketed_root, tmp_path)[0].stack(0), first.stack(0))
    with torch.no_grad():
        vae.quant_conv.bias.copy_(bias)
    vae.save_pretrained(tmp_path / "vae")
    load(vae, bucketed_root, tmp_path)
    assert written.items() <= shards(tmp_path).items() and len(shards(tmp_path)) == 2
    # Other pixels have another digest in the manifest.
    shutil.copytree(bucketed_root, tmp_path / "changed")
    manifest = tmp_path / "changed" / "metadata" / "manifest.json"
    digest = StackDataset(bucketed_root, "val").record(0).pixels
    manifest.write_text(manifest.read_text().replace(digest, "f" * 32))
    load(vae, tmp_path / "changed", tmp_path)
    assert len(shards(tmp_path)) == 3


def test_a_sample_that_cannot_be_read_is_left_out_by_name(vae, bucketed_root, tmp_path):
    shutil.copytree(bucketed_root, tmp_path / "set")
    record = StackDataset(tmp_path / "set", "val").record(1)
    (tmp_path / "set" / record.composite["path"]).write_bytes(b"junk")
    stacks, skipped = load(vae, tmp_path / "set", tmp_path)
    assert len(skipped) == 1 and skipped[0].startswith(f"{record.sample_id}: ")
    assert record.sample_id not in stacks.ids and len(stacks.ids) == len(stacks.keys) == 3
    for path in (tmp_path / "set").rglob("*.png"):
        path.write_bytes(b"junk")
    shutil.rmtree(tmp_path / "cache")
    with pytest.raises(DatasetError, match="no sample of a split of 4 can be read"):
        load(vae, tmp_path / "set", tmp_path)


def test_both_splits(vae, bucketed_root, tmp_path):
    with pytest.raises(DatasetError):
        cached_stacks(StackDataset(bucketed_root, "val"), open_cache(digest(tmp_path / "vae"), tmp_path / "cache"))
    train, held_out = both_splits(
        vae, tmp_path / "vae", bucketed_root, cache_dir=tmp_path / "cache", accelerator=Accelerator(cpu=True)
    )
    assert (len(train.ids), len(held_out.ids)) == (8, 4)


def test_large_images_go_through_the_network_one_by_one(vae, monkeypatch):
    """As many at once as fit the bound, at least one; the latents and images are those of all together."""
    sizes = []
    for name in ("encode", "decode"):
        original = getattr(vae, name)

        def counted(x, *args, original=original, **kwargs):
            sizes.append(len(x))
            return original(x, *args, **kwargs)

        monkeypatch.setattr(vae, name, counted)
    torch.manual_seed(0)
    composite, layers = torch.rand(2, 4, 32, 32) * 2 - 1, torch.rand(2, 3, 4, 32, 32) * 2 - 1
    together = encode_stack(vae, composite, layers)
    shown = decode_layers(vae, together)
    assert sizes == [8, 8]
    for bound, most in ((3 * 32 * 32, 3), (10, 1)):
        sizes.clear()
        monkeypatch.setattr(latents, "PIXELS_AT_ONCE", bound)
        assert torch.allclose(encode_stack(vae, composite, layers), together, atol=1e-5)
        assert torch.allclose(decode_layers(vae, together), shown, atol=1e-5)
        assert max(sizes) == most and sum(sizes) == 16


def test_stacks_at_once_are_bounded_by_their_pixels():
    assert stacks_at_once((96, 64, 6), 16) == 16, "the default's buckets go as they went"
    assert stacks_at_once((640, 640, 4), 16) == 2
    assert stacks_at_once((1024, 1024, 20), 16) == 1


def test_latents_can_be_kept_in_half(vae, bucketed_root, tmp_path):
    full, _ = load(vae, bucketed_root, tmp_path)
    half, _ = load(vae, bucketed_root, tmp_path, torch.bfloat16)
    assert half.stack(0).dtype == torch.bfloat16 and half.batch([0])["latents"].dtype == torch.float32
    assert torch.equal(half.stack(0), full.stack(0).bfloat16())


def test_batches_are_read_ahead_in_the_order_of_the_stream(vae, bucketed_root, tmp_path):
    stacks, _ = load(vae, bucketed_root, tmp_path)
    order = BucketBatches(stacks.keys, 2, seed=3)
    expected = [stacks.batch(indices) for indices in islice(order.endless(1), 5)]
    for workers in (0, 2):
        found = list(islice(stacks.endless(order, 1, workers), 5))
        # Where processes are not forked, as on macOS, the stacks are sent to them.
        stacks = pickle.loads(pickle.dumps(stacks))
        assert [batch["id"] for batch in found] == [batch["id"] for batch in expected]
        assert all(torch.equal(a["latents"], b["latents"]) for a, b in zip(found, expected, strict=True))


def test_a_flipped_bit_is_noticed_and_made_good(vae, bucketed_root, tmp_path):
    stacks, _ = load(vae, bucketed_root, tmp_path)
    before = stacks.stack(3).clone()
    (path,) = shards(tmp_path)
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.unlink()
    path.write_bytes(data)
    with pytest.raises(DamagedCacheError, match="is damaged; removed, run the same command again"):
        reopened, _ = load(vae, bucketed_root, tmp_path)
        for index in range(4):
            reopened.stack(index)
    assert torch.equal(load(vae, bucketed_root, tmp_path)[0].stack(3), before)


def test_an_empty_layer_has_the_latents_of_an_empty_image(vae):
    empty = torch.cat([torch.full((1, 3, 8, 16), -1.0), torch.full((1, 1, 8, 16), -1.0)], dim=1)
    expected = encode_stack(vae, empty, empty[:, None])[0, 1]
    assert torch.allclose(empty_latents(vae, (2, 4)), expected, atol=1e-6)
