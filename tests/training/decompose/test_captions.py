import pytest
import torch
from accelerate import Accelerator
from safetensors import safe_open

from config.decompose import TextCondition
from models.tiny_release import write_release
from models.transformer.text_condition import read_text_condition, save_text_condition
from models.transformer.text_encoders import TextEncoderSource
from training.decompose.captions import embed_captions


@pytest.mark.parametrize(("encoder", "source"), [("none", None), ("minilm", None), ("qwen", "owner/name")])
def test_a_folder_says_what_text_its_network_reads(tmp_path, encoder, source):
    condition = TextCondition(encoder=encoder, source=source, max_tokens=77, dropout=0.25)
    save_text_condition(condition, tmp_path)
    assert read_text_condition(tmp_path) == condition


def test_without_a_word_the_layout_says_it(tmp_path):
    assert read_text_condition(tmp_path).encoder == "none"
    (tmp_path / "text_encoder").mkdir()
    released = read_text_condition(tmp_path)
    assert (released.encoder, released.source) == ("qwen", str(tmp_path))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_an_encoder_is_loaded_only_for_texts_that_are_not_there(tmp_path, monkeypatch, dtype):
    """Of the full size it is 14 GB, and every process used to load it to learn its width."""
    release = write_release(tmp_path / "release")
    condition = TextCondition(encoder="qwen", source=str(release), max_tokens=64, dropout=0.0)
    alone, loads, load = Accelerator(cpu=True), [], TextEncoderSource.load
    monkeypatch.setattr(TextEncoderSource, "load", lambda self, device: loads.append(device) or load(self, device))
    texts = [["a disc", "its ground"], ["a poster"]]
    captions = embed_captions(condition, texts, tmp_path / "cache", alone, dtype)
    states, _ = captions(["a disc", "a poster"])
    assert len(loads) == 1 and states.dtype == torch.float32 and states.shape[2] == captions.width == 32
    again = embed_captions(condition, texts[:1], tmp_path / "cache", alone, dtype)
    assert len(loads) == 1 and torch.equal(again(["a disc", "a poster"])[0], states)
    embed_captions(condition, [["new"]], tmp_path / "cache", alone, dtype)
    assert len(loads) == 2
    for path in (tmp_path / "cache").rglob("*.safetensors"):
        with safe_open(path, "pt") as file:
            assert {file.get_tensor(n).dtype for n in file.keys() if n.endswith("embedding")} == {dtype}  # noqa: SIM118
