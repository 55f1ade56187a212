import json

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from training.cache import DamagedCacheError, TensorCache, embed_texts, text_key

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
    found = cache.get(text_key("ab"))
    assert found["embedding"].tolist() == [[97.0, 1.0], [98.0, 1.0]] and found["mask"].tolist() == [1, 1]
    embed_texts(encoder, ["q", "new"], TensorCache(tmp_path, IDENTITY), progress=False)
    assert encoder.calls[2:] == [["new"]]
    embed_texts(encoder, ["q"], TensorCache(tmp_path, IDENTITY | {"template": "b {}"}), progress=False)
    assert encoder.calls[3:] == [["q"]]
