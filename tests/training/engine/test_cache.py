import contextlib
import errno
import json
import os
import resource
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from config.errors import UserError
from layers.dataset.digest import text_digest
from training.engine.cache import DamagedCacheError, TensorCache, embed_texts

IDENTITY = {"encoder": "abc", "template": "a {}", "dtype": "float32"}


def entry(seed, rows=3):
    generator = torch.Generator().manual_seed(seed)
    return {"embedding": torch.randn(rows, 4, generator=generator), "mask": torch.ones(rows, dtype=torch.bool)}


def test_what_is_put_is_got_again_by_another_process(tmp_path):
    cache = TensorCache(tmp_path, IDENTITY)
    cache.put({"a": entry(1), "b": entry(2, rows=0)})
    cache.put({"c": {"x": torch.tensor(3.0, dtype=torch.bfloat16)}})
    again = TensorCache(tmp_path, dict(reversed(IDENTITY.items())))
    assert again.missing(["c", "z", "a", "z"]) == ["z"] and "b" in again
    assert torch.equal(again.get("a")["embedding"], entry(1)["embedding"])
    assert again.get("b")["embedding"].shape == (0, 4)
    assert again.get("c")["x"].dtype == torch.bfloat16
    assert json.loads((again.folder / "identity.json").read_text()) == IDENTITY
    assert not list(tmp_path.rglob("*.part"))


@given(st.sampled_from(sorted(IDENTITY)), st.text(max_size=4))
@settings(max_examples=20, deadline=None)
def test_any_other_identity_is_another_cache(tmp_path_factory, key, value):
    root = tmp_path_factory.mktemp("cache")
    TensorCache(root, IDENTITY).put({"a": entry(1)})
    other = IDENTITY | {key: value}
    assert ("a" in TensorCache(root, other)) == (other == IDENTITY)


@pytest.mark.parametrize("spoil", [lambda data: data[:40], lambda data: b"", lambda data: data[: len(data) // 2]])
def test_a_torn_shard_counts_as_absent(tmp_path, spoil):
    cache = TensorCache(tmp_path, IDENTITY)
    cache.put({"a": entry(1)})
    (path,) = cache.folder.glob("*.safetensors")
    path.write_bytes(spoil(path.read_bytes()))
    again = TensorCache(tmp_path, IDENTITY)
    assert again.missing(["a"]) == ["a"] and not path.exists()


def test_a_flipped_bit_is_noticed(tmp_path):
    cache = TensorCache(tmp_path, IDENTITY)
    cache.put({"a": {"x": torch.arange(8.0)}})
    (path,) = cache.folder.glob("*.safetensors")
    data = bytearray(path.read_bytes())
    data[-2] ^= 4
    path.write_bytes(data)
    with pytest.raises(DamagedCacheError, match="x of a is damaged; removed"):
        TensorCache(tmp_path, IDENTITY).get("a")
    assert TensorCache(tmp_path, IDENTITY).missing(["a"]) == ["a"]


@contextlib.contextmanager
def no_handles(path):
    """No file can be opened any more: EMFILE."""
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (64 + len(list(Path("/proc/self/fd").iterdir())), limits[1]))
    taken = []
    try:
        with contextlib.suppress(OSError):
            while True:
                taken.append(path.open("rb"))
        yield
    finally:
        for file in taken:
            file.close()
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)


@contextlib.contextmanager
def failing(number, patch):
    def fail(*_):
        raise OSError(number, os.strerror(number))

    patch.setattr("training.engine.cache.safe_open", fail)
    patch.setattr(Path, "open", fail)
    try:
        yield
    finally:
        patch.undo()


@pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="counts open files in /proc")
@pytest.mark.parametrize("fault", ["EMFILE", "EIO", "EACCES", "ESTALE"])
def test_what_cannot_be_read_now_is_left_alone(tmp_path, monkeypatch, fault):
    cache = TensorCache(tmp_path, IDENTITY)
    cache.put({"a": entry(1)})
    (path,) = cache.folder.glob("*.safetensors")
    number = getattr(errno, fault)
    for opens in (lambda: TensorCache(tmp_path, IDENTITY), lambda: cache.get("a")):
        held = no_handles(path) if fault == "EMFILE" else failing(number, monkeypatch)
        with pytest.raises(UserError) as raised, held:
            opens()
        assert f"cannot be read now ({os.strerror(number)})" in str(raised.value)
    assert torch.equal(TensorCache(tmp_path, IDENTITY).get("a")["embedding"], entry(1)["embedding"])


def test_a_shard_that_goes_while_the_cache_is_opened_counts_as_absent(tmp_path, monkeypatch):
    cache = TensorCache(tmp_path, IDENTITY)
    cache.put({"a": entry(1)})
    (path,) = cache.folder.glob("*.safetensors")
    listed = [path, path.with_name("gone.safetensors")]
    monkeypatch.setattr(Path, "glob", lambda *_: listed)
    assert "a" in TensorCache(tmp_path, IDENTITY)
    path.unlink()
    with pytest.raises(UserError, match="is gone; run the same command again"):
        cache.get("a")


def test_a_shard_that_another_process_has_mended_is_not_removed(tmp_path):
    cache = TensorCache(tmp_path, IDENTITY)
    cache.put({"a": {"x": torch.arange(8.0)}})
    (path,) = cache.folder.glob("*.safetensors")
    whole = path.read_bytes()
    path.write_bytes(whole[:-2] + b"\x00" + whole[-1:])
    late = TensorCache(tmp_path, IDENTITY)
    late._opened(str(path), os.getpid())
    path.unlink()
    path.write_bytes(whole)
    assert late.get("a")["x"].tolist() == list(range(8)) and path.read_bytes() == whole


class WordEncoder:
    """Embeds each letter; pads to the longest text of the batch with loud numbers."""

    def __init__(self):
        self.calls = []

    def __call__(self, texts):
        self.calls.append(list(texts))
        length = max(map(len, texts))
        embeddings, masks = torch.full((len(texts), length, 2), 99.0), torch.zeros(len(texts), length, dtype=torch.long)
        for row, text in enumerate(texts):
            masks[row, : len(text)] = 1
            embeddings[row, : len(text)] = torch.tensor([[float(ord(letter)), 1.0] for letter in text])
        return embeddings, masks


def test_texts_are_embedded_once_and_padding_is_not_remembered(tmp_path):
    cache, encoder = TensorCache(tmp_path, IDENTITY), WordEncoder()
    embed_texts(encoder, ["ab", "wxyz", "ab", "q"], cache, batch_size=2, progress=False)
    assert encoder.calls == [["ab", "wxyz"], ["q"]]
    found = cache.get(text_digest("ab"))
    assert found["embedding"].tolist() == [[97.0, 1.0], [98.0, 1.0]] and found["mask"].tolist() == [1, 1]
    embed_texts(encoder, ["q", "new"], TensorCache(tmp_path, IDENTITY), progress=False)
    assert encoder.calls[2:] == [["new"]]
    embed_texts(encoder, ["q"], TensorCache(tmp_path, IDENTITY | {"template": "b {}"}), progress=False)
    assert encoder.calls[3:] == [["q"]]
