"""presets/rehearsal.yaml: the full size's pipeline, every switch of it, on networks that a CPU runs through."""

import json
import shutil
import time
from pathlib import Path

import pytest
import torch
from diffusers import QwenImageLayeredPipeline
from safetensors import safe_open
from safetensors.torch import load_file

from config.params import flatten, load_params
from models.tiny_release import write_release
from models.transformer.lora import LORA_FILE, adapted_base
from tests.support.imports import ROOT
from tests.support.workspace import commit, dvc, make_clone, run, run_together, stage
from training.engine.progress import THE_START

RELEASE = "models/weights/tiny_release"
SHARDED = (2, "tests.training.engine.fsdp_on_cpu")
SIZES = {
    "prepare_buckets.shard_samples",
    "prepare_buckets.val_count",
    "prepare_buckets.val_share",
    "prepare_buckets.test_count",
    "prepare_buckets.test_share",
    "prepare_buckets.max_side",
    "prepare_buckets.min_side",
    "prepare_buckets.max_pixels",
    "prepare_buckets.jobs",
    "train_vae.base_dim",
    "train_vae.discriminator.width",
    "train_vae.discriminator.layers",
    "train_vae.discriminator.start_samples",
    "train_decompose.num_layers",
    "train_decompose.num_attention_heads",
    "train_decompose.attention_head_dim",
    "train_decompose.axes_dims_rope",
    "train_decompose.joint_attention_dim",
    "train_decompose.validation.samples",
    "train_decompose.validation.steps",
    "evaluate.steps",
    "evaluate.baselines.released.steps",
    "evaluate.panels",
    "evaluate.jobs",
    *(f"{stage}.lora.{name}" for stage in ("train_decompose", "refine") for name in ("rank", "alpha")),
    *(
        f"{stage}.optimisation.{name}"
        for stage in ("train_vae", "train_decompose", "refine")
        for name in ("epochs", "epoch_samples", "warmup_samples", "num_workers", "log_every", "checkpoint_every")
    ),
}
NAMES = {
    "tracking.experiment",
    "prepare_buckets.rendered_root",
    "prepare_buckets.layout_root",
    "train_vae.rgb_checkpoint",
    "train_decompose.checkpoint",
    "train_decompose.text.source",
    "evaluate.baselines.released.model",
}


def test_it_differs_from_the_full_size_in_sizes_and_names_only():
    full, small = (flatten(load_params(ROOT / "presets" / f"{name}.yaml")) for name in ("qwen", "rehearsal"))
    assert full.keys() == small.keys()
    assert {key for key in full if full[key] != small[key]} <= SIZES | NAMES
    # What is 0 is switched off, at any size.
    assert [key for key in SIZES if bool(full[key]) != bool(small[key])] == []
    assert {full[name] for name in NAMES if "Qwen" in str(full[name])} == {"Qwen/Qwen-Image-Layered"}
    assert [small[name] for name in NAMES if "Qwen" in str(full[name])] == [RELEASE] * 4


@pytest.fixture(scope="module")
def rehearsed(tmp_path_factory) -> tuple[Path, float]:
    """A clone in which the pipeline has run with the preset, and the seconds it took."""
    root = make_clone(tmp_path_factory.mktemp("rehearsal") / "clone")
    shutil.copy2(ROOT / "params.yaml", root / "params.yaml")
    commit(root, "default")
    run(stage("use_preset", "presets/rehearsal.yaml"), root, PYTHONPATH=str(root))
    write_release(root / RELEASE)
    commit(root, "rehearsal")
    start = time.perf_counter()
    dvc(root, "repro")
    return root, time.perf_counter() - start


def report(root: Path, name: str) -> dict:
    return json.loads((root / "metrics" / "reports" / f"{name}.json").read_text())


def dtypes(path: Path) -> set[torch.dtype]:
    return {value.dtype for value in load_file(path).values()}


def test_the_whole_pipeline_runs(rehearsed):
    root, seconds = rehearsed
    print(f"dvc repro with presets/rehearsal.yaml: {seconds:.1f} s")
    for name in ("train_vae", "train_decompose", "refine", "evaluate"):
        assert report(root, name)
    # The decoder alone was trained, in the latent space of the release.
    ours, theirs = (load_file(root / place / "diffusion_pytorch_model.safetensors")
                    for place in ("models/weights/vae/vae", f"{RELEASE}/vae"))  # fmt: skip
    same = {name for name in theirs if "time_conv" not in name and name.startswith(("encoder.", "quant_conv."))}
    changed = [n for n in ours if n.startswith("decoder.") and not torch.equal(ours[n], theirs[n].float())]
    assert changed and all(torch.equal(ours[n][:, :, -1], theirs[n].float()[:, :, -1])
                           for n in same if ours[n].ndim == 5)  # fmt: skip
    config, released = (json.loads((root / place / "config.json").read_text())
                        for place in ("models/weights/vae/vae", f"{RELEASE}/vae"))  # fmt: skip
    assert config["latents_mean"] == released["latents_mean"] and config["latents_std"] == released["latents_std"]


def test_refine_goes_on_with_the_adapters_of_stage_three(rehearsed):
    root, _ = rehearsed
    adapters = [load_file(root / "models" / "weights" / stage / LORA_FILE) for stage in ("decompose", "refine")]
    assert adapters[0].keys() == adapters[1].keys()
    # Adapters begun anew would be as far away as weights are large. Whether a step of so few samples is better than the
    # start, which is kept if not, hangs on how a CPU rounds.
    change = max(float((adapters[0][name] - adapters[1][name]).abs().max()) for name in adapters[0])
    assert (change == 0.0) == (report(root, "refine").get("kept") == THE_START) and change < 1e-3
    assert adapted_base(root / "models/weights/refine", 2, 2.0) == RELEASE
    # On the release, they are the merged network.
    pipeline = QwenImageLayeredPipeline.from_pretrained(root / RELEASE, torch_dtype=torch.float32)
    pipeline.load_lora_weights(root / "models" / "weights" / "refine", weight_name=LORA_FILE)
    pipeline.fuse_lora()
    pipeline.unload_lora_weights()
    merged = load_file(root / "models/weights/refine/transformer/diffusion_pytorch_model.safetensors")
    start = load_file(root / RELEASE / "transformer" / "diffusion_pytorch_model.safetensors")
    fused, moved = pipeline.transformer.state_dict(), 0.0
    for name, value in merged.items():
        assert value.dtype == torch.bfloat16
        assert torch.allclose(value.float(), fused[name], rtol=2**-7, atol=1e-6), name
        moved = max(moved, float((value.float() - start[name].float()).abs().max()))
    assert moved > 0.0


def test_what_is_kept_is_half_as_large(rehearsed):
    root, _ = rehearsed
    for kind, part in (("latents", "/latents"), ("texts", "/embedding")):
        (path, *_) = (root / "data" / "cache" / kind).rglob("*.safetensors")
        with safe_open(path, "pt") as file:
            found = {file.get_tensor(name).dtype for name in file.keys() if name.endswith(part)}  # noqa: SIM118
        assert found == {torch.bfloat16}, kind


def test_dvc_links_what_it_keeps(rehearsed):
    """At the full size a copy of the data alone is half a terabyte."""
    root, _ = rehearsed
    for place in ("data/rgba_layers", "models/weights/decompose/transformer"):
        files = [path for path in (root / place).rglob("*") if path.is_file() and path.stat().st_size]
        assert files and all(path.stat().st_nlink > 1 for path in files), place


def test_the_release_is_scored_beside(rehearsed):
    root, _ = rehearsed
    rows = report(root, "evaluate")["decomposition"]
    assert {"model", "released", "composite_only", "true_layers_through_vae"} <= rows.keys()


def test_two_processes_rehearse_it_in_shards(rehearsed, tmp_path):
    source, _ = rehearsed
    root = tmp_path / "sharded"
    for place in ("data/rgba_layers", "models/weights/vae", RELEASE):
        (root / place).parent.mkdir(parents=True, exist_ok=True)
        (root / place).symlink_to(source / place)
    shutil.copy2(source / "params.yaml", root / "params.yaml")
    for name, key in (("train_decompose", "velocity_layers"), ("refine", "after")):
        run_together(*SHARDED, name, root=root)
        assert key in report(root, name)
    learnt = load_file(root / "models" / "weights" / "refine" / LORA_FILE)
    assert max(float(value.abs().max()) for name, value in learnt.items() if "lora_B" in name) > 0.0
