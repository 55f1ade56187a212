"""What the documentation tells a reader to type: a finder, and how each command is run on a few samples.

Found are the lines of shell blocks, of README.md, CONTRIBUTING.md and docs/*.md, and commands within sentences
(```python -m …```, ``make …`` and their like; tools of others in a sentence are mostly named, not called). A command
within a sentence that begins another one is its name.
"""

import re
from dataclasses import dataclass, field
from pathlib import Path

SHELL = ("", "bash", "sh", "console")
FENCE = re.compile(r"^```([\w-]*)\s*$")
COMMENT = re.compile(r"(^|\s+)#(\s.*)?$")
HEREDOC = re.compile(r"<<\s*'?(\w+)'?")
INLINE = re.compile(r"([A-Z_]+=\S+ )?(\.venv/bin/)?(make|python -m|accelerate launch|torchrun|cp|pip install) \S")
DIARY = "log.md"


def blocks(text: str) -> list[tuple[str, str]]:
    """Language and content of every fenced block."""
    found, language, lines = [], None, []
    for line in text.splitlines():
        fence = FENCE.match(line)
        if language is None and fence:
            language, lines = fence[1], []
        elif fence:
            found.append((language, "\n".join(lines)))
            language = None
        elif language is not None:
            lines.append(line)
    return found


def lines_of(language: str, block: str) -> list[str]:
    """The commands of a shell block: without comments, a here-document with its command, of a console what is typed."""
    found, rest = [], block.splitlines()
    while rest:
        line = rest.pop(0)
        if language == "console":
            if not line.startswith("$ "):
                continue
            line = line.removeprefix("$ ")
        line = COMMENT.sub("", line).strip()
        while line.endswith("\\"):
            line = f"{line[:-1].strip()} {COMMENT.sub('', rest.pop(0)).strip()}"
        if document := HEREDOC.search(line):
            end = rest.index(document[1])
            line = "\n".join([line, *rest[: end + 1]])
            rest = rest[end + 1 :]
        if line:
            found.append(line)
    return found


def typed_lines(text: str) -> list[str]:
    """The commands of a document's shell blocks."""
    return [line for language, block in blocks(text) if language in SHELL for line in lines_of(language, block)]


def within_sentences(text: str) -> list[str]:
    """The commands between a document's blocks."""
    prose = re.sub(r"^```.*?^```\s*$", "", text, flags=re.MULTILINE | re.DOTALL)
    spans = (" ".join(span.split()) for span in re.findall(r"`([^`]+)`", prose))
    return [span for span in spans if INLINE.match(span)]


def documents(root: Path) -> list[Path]:
    """README, what contributors read, and docs."""
    return [root / "README.md", *sorted(root.glob("CONTRIBUTING.md")), *sorted((root / "docs").glob("*.md"))]


def documented(root: Path) -> set[str]:
    """All commands of the documents; of the diary, which tells of other days, those of blocks."""
    texts = {path: path.read_text() for path in documents(root)}
    found = {line for text in texts.values() for line in typed_lines(text)}
    spans = {span for path, text in texts.items() if path.name != DIARY for span in within_sentences(text)}
    names = {span for span in spans if any(other.startswith(f"{span} ") for other in found | spans)}
    return found | (spans - names)


def python_blocks(root: Path) -> dict[str, str]:
    """Every Python block by its document and number, such as ``README.md 1``."""
    found = {}
    for path in documents(root):
        programs = [block for language, block in blocks(path.read_text()) if language in ("python", "pycon")]
        found |= {f"{path.name} {number}": program for number, program in enumerate(programs, 1)}
    return found


@dataclass(frozen=True)
class How:
    """How a command is run.

    Args:
        replace: what stands in the place of what: sizes, and names of what the reader has.
        says: what its output has to contain.
        leaves: pattern of what it has to write anew.
        after: command that is run then, to leave the clone as the next one needs it.
    """

    replace: dict[str, str] = field(default_factory=dict)
    says: str = ""
    leaves: str = ""
    after: str = ""


@dataclass(frozen=True)
class Serve:
    """How a server is started, and what it has to answer.

    Args:
        path: what is asked.
        says: what the answer contains.
        replace: as of :class:`How`; ``PORT`` in a value is one that is free.
    """

    path: str
    says: str
    replace: dict[str, str]


CRELLO = "hf://datasets/cyberagent/crello@5.1.0"
CONVERT = "python -m stages.convert_vae --source Qwen/Qwen-Image --subfolder vae --output-dir"

# In this order: some need what others have left.
RUN = {
    "make repro": How(says="Numbers: metrics/reports/", leaves="metrics/reports/report.html",
                      after="git add --all && git commit --quiet --message repro"),
    "dvc repro": How(says="Data and pipelines are up to date."),
    "dvc repro evaluate": How(says="Stage 'evaluate' didn't change"),
    "make lint": How(says="already formatted"),
    "python -m evaluation.results --write": How(
        says="<!-- end of results -->", leaves="README.md", after="git checkout --quiet README.md"),
    "python -m stages.use_preset presets/from_nothing.yaml": How(
        says="is written in", leaves="params.yaml", after="git checkout --quiet params.yaml"),
    "python -m stages.prepare_buckets --output-root data/rgba_layers --train-count 1000 --val-count 50": How(
        {"1000": "16", "50": "4"}, "24 were there"),
    "python -m stages.check_data --max-samples 2 --batch-size 1": How(
        says="component", leaves="data/contact_sheet.png"),
    # The registry: a champion, and another alias.
    "python -m stages.promote --metric alpha_iou": How(says="version 1 of qwen-image-layered-decomposer is champion"),
    "python -m stages.promote --metric cost --version 3 --alias staging": How(
        {"--version 3": "--version 1"}, "version 1 of qwen-image-layered-decomposer is staging"),
    # Stages by hand.
    "python -m stages.train_vae": How(says="PSNR over white", leaves="metrics/reports/train_vae.json"),
    "python -m stages.refine": How(says="held out:", leaves="metrics/reports/refine.json"),
    "python -m stages.train_decompose --plan": How(says="8 x 80 GB"),
    "python -m stages.train_decompose --params presets/qwen.yaml --plan": How(says="20,430,407,232 parameters"),
    "python -m stages.decompose --plan --model Qwen/Qwen-Image-Layered": How(says="taken for the released model"),
    # Evaluation. theirs/ holds the true layers, crello/ designs in the form of the published files.
    "python -m stages.evaluate --model MODEL": How({"MODEL": "models/pretrained/model"}, "4 images, 0 merges"),
    "python -m stages.evaluate --other theirs=DIR --baseline name=MODEL": How(
        {"DIR": "theirs", "MODEL": "models/weights/decompose"}, "4 images", "metrics/reports/evaluate.json",
        "grep -q '\"theirs\"' metrics/reports/evaluate.json && grep -q '\"name\"' metrics/reports/evaluate.json"),
    "python -m stages.evaluate --baseline before=FOLDER": How(
        {"FOLDER": "models/weights/decompose"}, "4 images", "metrics/reports/evaluate.json",
        "grep -q '\"before\"' metrics/reports/evaluate.json"),
    "python -m stages.evaluate --dataset real=DIR": How(
        {"DIR": "tests/data/designs"}, "real: 6 images", "metrics/reports/evaluate_real.json"),
    f"python -m stages.evaluate --source crello --location {CRELLO} --model owner/name": How(
        {CRELLO: "crello", "owner/name": "models/weights/refine --short-side 64"},
        "2 images", "metrics/reports/report_crello.html"),
    "python -m metrics.decomposition --pred DIR --gt DIR --max-merges 5 --out scores.json": How(
        {"DIR": "theirs"}, leaves="scores.json", after="grep -q '\"mean_over_samples\": 4' scores.json"),
    "python -m stages.evaluate_vae --images DIR --vae models/weights/vae/vae --out scores.json": How(
        {"DIR": "theirs", "scores.json": "scores.json --size 32"}, leaves="scores.json", after="grep psnr scores.json"),
    # Images. released/ is a network of some thousand weights in the layout of the released one.
    "python -m stages.decompose IMAGE… --layers 3 --out DIR --format png,psd,pptx,ora,zip": How(
        {"IMAGE…": "poster.png", "DIR": "layers_out"}, "poster.png: 3 layers, recomposed within",
        "layers_out/poster.psd"),
    "python -m stages.decompose IMAGE… --layers 4 --out DIR --model Qwen/Qwen-Image-Layered --caption \"…\" "
    "--guidance 4 --steps 50 --offload blocks": How(
        {"IMAGE…": "poster.png", "DIR": "four", "Qwen/Qwen-Image-Layered": "released", "--steps 50": "--steps 2"},
        "poster.png: 4 layers", "four/poster/00_background.png"),
    # Studies.
    "make tune": How(says="in trial 0 of 1", leaves=".tune/train_vae-losses/trial_0000"),
    "python -m stages.tune --stage train_vae --trials 12": How({"12": "1"}, "of 2"),
    "python -m stages.tune --report": How(says="of 2"),
    "python -m stages.tune --confirm 5": How({"5": "1"}, "of 2"),
    "python -m stages.tune --apply": How(says="params.yaml", after="git checkout --quiet params.yaml"),
    "python -m stages.tune --apply train_vae-losses --trial 7": How(
        {"--trial 7": "--trial 1"}, "+++ b/params.yaml", after="git checkout --quiet params.yaml"),
    "python -m stages.tune --as-dvc-experiments 3": How({"3": "1"}, "tune: queued train_vae-losses-"),
    # Experiments. Without their targets they would run the stages that follow, as tests/stages/test_pipeline.py does.
    "dvc exp run --temp -S train_vae.loss.l1=0.5": How({"l1=0.5": "l1=0.5 train_vae"}, "Ran experiment"),
    f"{CONVERT} models/weights/rgba_vae_init": How(
        {"Qwen/Qwen-Image ": "models/pretrained/rgb_vae "}, "latents differ from the source's by",
        "models/weights/rgba_vae_init/config.json"),
    "dvc exp run -S train_vae.rgb_checkpoint=models/weights/rgba_vae_init -S train_vae.trained=all train_vae": How(
        says="PSNR over white", leaves="metrics/reports/train_vae.json"),
    "dvc metrics diff; dvc plots show": How(
        says="psnr_white", leaves="dvc_plots/index.html", after="git checkout --quiet HEAD -- params.yaml"),
    "git checkout COMMIT -- dvc.lock && dvc checkout models/weights/refine && python -m stages.evaluate": How(
        {"COMMIT": "HEAD"}, "4 images, 0 merges"),
    "git checkout HEAD -- dvc.lock metrics && dvc checkout --force": How(says="vae"),
    "dvc exp run -S train_decompose.checkpoint=Qwen/Qwen-Image-Layered -S train_decompose.lora.rank=32 …": How(
        {"Qwen/Qwen-Image-Layered": "models/pretrained/model", "32 …": "2 train_decompose"}, "velocity error",
        "models/weights/decompose/pytorch_lora_weights.safetensors",
        "git checkout --quiet HEAD -- params.yaml dvc.lock metrics"),
    "dvc exp show --md --drop '.*' --keep 'Experiment|psnr_white|after.layer_pixels|at_0_merges.model.cost'": How(
        says="after.layer_pixels"),
    "python -m tracking.spool": How(says="0 runs delivered"),
    "export MLFLOW_TRACKING_URI=sqlite:///mlruns/mlflow.db": How(
        {"mlflow.db": "mlflow.db && mlflow experiments search"}, "qwen-image-layered"),
    "python -m benchmarks.prepare_throughput": How(
        {"throughput": "throughput --samples 4 --size 192 --side 96 --rounds 1"}, "faster_than_pillow"),
    "python -m models.tiny_release --out models/weights/tiny_release": How(
        says="tiny_release", leaves="models/weights/tiny_release/model_index.json"),
    "python -m benchmarks.storage_at_scale": How({"at_scale": "at_scale --samples 20 --no-dvc"}, "shards"),
}  # fmt: skip

ASK = "/ajax-api/2.0/mlflow/experiments/get-by-name?experiment_name="
# All are started together, once RUN is done. The Makefile's own ports are put aside by the clone's (PORT).
SERVE = {
    "make serve": Serve("/version", "3.", {"serve": "serve PORT=PORT"}),
    "mlflow models serve -m models:/qwen-image-layered-decomposer@champion --env-manager local --host 127.0.0.1 "
    "--port 5001": Serve("/version", "3.", {
        "mlflow models": "export MLFLOW_TRACKING_URI=sqlite:///mlruns/mlflow.db && mlflow models", "5001": "PORT"}),
    "make app": Serve("/", '"title":"Layers"', {"app": "app PORT=PORT"}),
    "python -m stages.app --model FOLDER --port 7861": Serve(
        "/", '"title":"Layers"', {"FOLDER": "released", "7861": "PORT"}),
    "make ui": Serve(f"{ASK}qwen-image-layered", '"name": "qwen-image-layered"', {"ui": "ui PORT=PORT"}),
    "mlflow server --backend-store-uri postgresql://user:password@host/mlflow --artifacts-destination s3://bucket/runs "
    "--host 127.0.0.1 --port 5000": Serve(f"{ASK}Default", '"name": "Default"', {
        "postgresql://user:password@host/mlflow": "sqlite:///server.db", "s3://bucket/runs": "server_files",
        "5000": "PORT"}),
}  # fmt: skip

NOT_RUN = {
    "python -m benchmarks.memory_table": "tests/training/memory/test_stages.py calls it",
    "make test": "this test is part of it",
    "python -m pytest -q tests/metrics": "make test runs these and the others",
    'python -m pytest -q -m "not pipeline and not slow"': "make test runs these and the others",
    "pip install pre-commit && pre-commit install": "installs a package; tests/test_checks.py holds the hooks",
    "make setup": "installs packages",
    ".venv/bin/pip install -r requirements.txt": "installs packages",
    "python -m venv .venv": "begins what make setup does: installs packages",
    "pip install s3fs": "installs a package",
    "pip install ray": "installs a package",
    "dvc remote add --default store s3://bucket/layers": "needs a bucket; tests/stages/test_pipeline.py has a folder",
    "uvx optuna-dashboard sqlite:///mlruns/optuna.db": "installs a package, and serves",
    "dvc push": "tests/stages/test_pipeline.py pushes",
    'git tag --annotate decomposer@v1.0.0 --message "first" && git push --tags': "tests/stages/test_pipeline.py tags",
    "dvc artifacts get https://example.org/you/layers.git decomposer --out decomposer": (
        "tests/stages/test_pipeline.py gets both models"
    ),
    "python -m stages.use_preset presets/rehearsal.yaml && dvc repro": "tests/stages/test_rehearsal.py runs it",
    "python -m stages.pretrain": "hours of compute; tests/experiments/test_pretraining.py has a recipe of seconds",
    "python -m benchmarks.rgba_vae_step --device cuda --bf16": "needs a GPU",
    "python -m benchmarks.vae_full_size --size 640": "minutes; tests/models/vae/test_full_size.py has a step",
    "CUDA_VISIBLE_DEVICES=3 python -m stages.tune": "needs GPUs",
    "accelerate launch --config_file presets/accelerate/multi_node.yaml": "needs a cluster",
    "accelerate launch --config_file presets/accelerate/fsdp2.yaml": "tests/training/engine/test_sharding.py",
    "python -m stages.use_preset presets/qwen.yaml": "tests/stages/test_rehearsal.py runs the preset's switches",
    "accelerate launch --num_processes 2 -m stages.train_vae": "tests/training/engine/test_two_processes.py",
    "accelerate launch --num_processes=2 scripts/train.py": "of the plan: the one beside it has taken its place",
    "python -m stages.decompose … --model Qwen/Qwen-Image-Layered": "needs a GPU and a hub; README's has a stand-in",
}

# Checks that follow a Python block of the documents, and what is replaced in it.
PYTHON = {
    "README.md 1": ({}, "assert len(layers) == 3 and {layer.shape for layer in layers} == {image.shape}"),
    "decompose.md 1": ({}, "assert Path('layers_auto/poster.psd').is_file()\n"
                           "assert len(list(Path('layers_auto/poster').iterdir())) == len(layers)"),
    "data.md 1": ({"batch_size=16": "batch_size=2", "num_workers=4": "num_workers=1", "world_size=8": "world_size=2"},
                  "assert next(iter(components))['component'].shape == (2, 4, 32, 32)\n"
                  "stacks.batch_sampler.set_position(epoch=3, batch=1)\n"
                  "assert next(iter(stacks))['layers'].shape[0] == 2"),
    "registry.md 1": ({}, "assert (answer['width'], answer['height'], len(answer['layers'])) == (120, 80, 4)"),
    "tracking.md 1": ({}, "assert runs['metrics.train_vae/psnr_white'].notna().any() and len(runs) >= 1"),
}  # fmt: skip
