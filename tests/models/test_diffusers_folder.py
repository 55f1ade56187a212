"""Where models lie: folders here, hub repositories, and names with a typing error."""

import shutil
from pathlib import Path

import pytest
from diffusers import AutoencoderKLQwenImage
from huggingface_hub.errors import OfflineModeIsEnabled
from huggingface_hub.utils import filter_repo_objects

from models import diffusers_folder as folders
from models.diffusers_folder import locate
from models.vae.autoencoder import RGBAVAE

SHAPE = {"base_dim": 8, "z_dim": 4, "dim_mult": [1, 2], "num_res_blocks": 1, "temperal_downsample": [True]}
SHAPE |= {"latents_mean": [0.0] * 4, "latents_std": [1.0] * 4, "input_channels": 4}
OTHERS = {
    "model_index.json": "{}",
    "README.md": "",
    "text_encoder/config.json": "{}",
    "text_encoder/model-00001-of-00004.safetensors": "16 GB",
    "transformer/config.json": '{"_class_name": "QwenImageTransformer2DModel"}',
    "transformer/diffusion_pytorch_model-00001-of-00005.safetensors": "10 GB",
}


class Hub:
    """Repositories in a folder; what is asked of them by their files' names."""

    def __init__(self, root: Path) -> None:
        self.root, self.copies = root / "hub", root / "copies"
        self.fetched: set[str] = set()

    def repository(self, name: str, files: dict[str, str]) -> Path:
        for file, text in files.items():
            path = self.root / name / file
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        return self.root / name

    def model_info(self, name: str, timeout: float) -> None:
        assert timeout <= 10
        if not (self.root / name).is_dir():
            raise ConnectionError("404: says nothing of whether there is a copy")

    def snapshot_download(self, name: str, *, allow_patterns: list[str], local_files_only: bool) -> str:
        if local_files_only or not (self.root / name).is_dir():
            raise FileNotFoundError("Repository\nNot Found")
        files = (str(path.relative_to(self.root / name)) for path in (self.root / name).rglob("*") if path.is_file())
        for file in filter_repo_objects(files, allow_patterns=allow_patterns):
            self.fetched.add(file)
            (self.copies / name / file).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(self.root / name / file, self.copies / name / file)
        return str(self.copies / name)


@pytest.fixture
def hub(tmp_path, monkeypatch) -> Hub:
    made = Hub(tmp_path)
    monkeypatch.setattr("huggingface_hub.snapshot_download", made.snapshot_download)
    monkeypatch.setattr("huggingface_hub.HfApi", lambda: made)
    folders._say_once.cache_clear()
    folders._hub_answers.cache_clear()
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    return made


@pytest.fixture
def save():
    vae = AutoencoderKLQwenImage(**SHAPE)
    return lambda folder, **options: vae.save_pretrained(folder, **options)


@pytest.mark.parametrize("size", ["20KB", "10GB"], ids=["sharded", "whole"])
@pytest.mark.parametrize("config", [None, "{}"], ids=["", "with a config that says nothing"])
def test_only_the_vae_of_a_release_is_downloaded(hub, save, size, config):
    root = hub.repository("owner/release", OTHERS | ({} if config is None else {"config.json": config}))
    save(root / "vae", max_shard_size=size)
    (root / "vae" / "diffusion_pytorch_model.bin").write_text("a pickle")
    assert RGBAVAE.from_pretrained("owner/release").config.input_channels == 4
    wanted = {f"vae/{path.name}" for path in (root / "vae").iterdir() if path.suffix != ".bin"}
    assert (len(wanted) > 3) == (size == "20KB")
    assert hub.fetched - {"config.json"} == wanted


@pytest.mark.parametrize("size", ["20KB", "10GB"], ids=["sharded", "whole"])
def test_a_repository_that_is_a_vae_itself(hub, save, size):
    root = hub.repository("owner/vae", OTHERS | {"diffusion_pytorch_model.bin": "a pickle"})
    save(root, max_shard_size=size)
    assert RGBAVAE.from_pretrained("owner/vae").config.z_dim == 4
    unwanted = {*OTHERS, "diffusion_pytorch_model.bin"}
    assert hub.fetched == {path.name for path in root.iterdir() if path.is_file()} - unwanted


def test_a_folder_here_with_a_vae_and_one_that_is_both(hub, save):
    save("release/vae")
    assert RGBAVAE.from_pretrained("release").config.z_dim == RGBAVAE.from_pretrained(Path("release")).config.z_dim == 4
    save("release/vae/vae")
    Path("release/vae/vae/config.json").write_text("no JSON, and not read")
    assert RGBAVAE.from_pretrained("release/vae").config.z_dim == 4
    Path("empty").mkdir()
    with pytest.raises(FileNotFoundError, match=r"^no config.json in empty, nor in its folder vae$"):
        RGBAVAE.from_pretrained("empty")
    with pytest.raises(FileNotFoundError, match=r"^no folder vae in empty$"):
        RGBAVAE.from_pretrained("empty", "vae")


def test_a_name_that_is_no_folder_is_said_to_be_taken_for_a_repository_once(hub, save, capsys):
    save(hub.repository("owner/release", OTHERS) / "vae")
    locate("owner/release", "text_encoder")
    RGBAVAE.from_pretrained("owner/release")
    said = "no folder at owner/release: taking it for the Hugging Face repository owner/release\n"
    assert capsys.readouterr().err == said
    with pytest.raises(FileNotFoundError) as caught:
        RGBAVAE.from_pretrained("owner/releese")
    assert str(caught.value) == (
        "no folder at owner/releese, and the hub does not give owner/releese: Repository Not Found"
    )
    assert capsys.readouterr().err.startswith("no folder at owner/releese: taking it for")


def test_a_mistyped_folder_is_refused_before_the_hub_is_asked(hub, save, capsys):
    Path("owner").mkdir()
    save(hub.repository("owner/release", OTHERS) / "vae")
    with pytest.raises(FileNotFoundError) as caught:
        RGBAVAE.from_pretrained("owner/release")
    assert str(caught.value) == (
        "no folder at owner/release, and owner is a folder: taken for a mistyped path; expected a folder, "
        "or hf://owner/release for the Hugging Face repository"
    )
    assert hub.fetched == set()
    assert RGBAVAE.from_pretrained("hf://owner/release").config.z_dim == 4
    assert capsys.readouterr().err == "", "who writes hf:// means it"
    with pytest.raises(FileNotFoundError, match=r"^the hub does not give owner/no: Repository Not Found$"):
        RGBAVAE.from_pretrained("hf://owner/no")
    with pytest.raises(FileNotFoundError, match=r"has the name hf://owner; expected hf://owner/name$"):
        RGBAVAE.from_pretrained("hf://owner")
    expected = "; expected a folder, or owner/name of a Hugging Face repository"
    for source, more in (("owner/release/vae", expected), ("release", expected), (Path("owner/release"), "")):
        with pytest.raises(FileNotFoundError, match=rf"^no folder at {source}{more}$"):
            RGBAVAE.from_pretrained(source)


def test_a_folder_of_the_project_counts_too(hub, tmp_path, monkeypatch):
    monkeypatch.setenv("DVC_ROOT", str(tmp_path))
    (tmp_path / "kept").mkdir()
    with pytest.raises(FileNotFoundError, match="kept is a folder: taken for a mistyped path"):
        locate("kept/model")


def test_a_silent_hub_is_not_waited_for(hub, monkeypatch):
    class ReadTimeout(Exception):
        pass

    def silent(name, timeout):
        raise ReadTimeout

    monkeypatch.setattr(hub, "model_info", silent)
    hub.repository("owner/release", OTHERS)
    with pytest.raises(FileNotFoundError, match="does not give owner/release: no answer in 10 s, and no local copy"):
        locate("owner/release", "transformer")
    assert hub.fetched == set(), "asked for what is here only"


def test_without_a_network_the_hubs_own_reason_is_given(hub, monkeypatch):
    def offline(*_, **__):
        raise OfflineModeIsEnabled("offline mode\nis enabled")

    monkeypatch.setattr(hub, "model_info", offline)
    monkeypatch.setattr("huggingface_hub.snapshot_download", offline)
    with pytest.raises(FileNotFoundError, match=r"does not give owner/release: offline mode is enabled$"):
        RGBAVAE.from_pretrained("owner/release")
