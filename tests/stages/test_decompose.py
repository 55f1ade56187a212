"""The command, in one process, with networks of a few thousand random weights: out come layers of the image."""

import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from psd_tools import PSDImage

from config.errors import UserError
from config.paths import check_place
from inference.decomposer import Decomposer
from inference.images import Effort, effort_of, layers_of
from layers.imaging.compositing import composite_8bit
from models.transformer.trained_for import RELEASED, read_trained_for, save_trained_for
from stages.decompose import main, targets
from tests.support.networks import save_tiny
from tests.support.sample_images import GOOD
from tests.support.workspace import environment, make_workspace


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return save_tiny(tmp_path_factory.mktemp("model"))


@pytest.fixture
def decompose(model, tmp_path, monkeypatch):
    root = make_workspace(tmp_path / "project")
    monkeypatch.chdir(root)

    def command(*arguments, expect=0):
        assert main(["--model", str(model), *map(str, arguments), "--steps", "2", "--tries", "2"]) == expect
        return root / "out"

    return command


def write_image(folder, name="poster.png", size=(150, 100), mode="RGB"):
    rng = np.random.default_rng(0)
    image = Image.fromarray(rng.integers(0, 256, (size[1], size[0], 3), np.uint8)).resize(size).convert(mode)
    folder.mkdir(exist_ok=True)
    image.save(folder / name)
    return folder / name


def read(folder):
    return [np.asarray(Image.open(path)) for path in sorted(folder.iterdir())]


def test_layers_have_the_images_size_and_flatten_to_it(decompose, tmp_path):
    source = write_image(tmp_path / "in")
    out = decompose(source, "--layers", 3, "--out", "out", "--format", "png,psd,pptx,ora,zip")
    names = sorted(path.name for path in out.iterdir())
    assert names == ["poster", "poster.ora", "poster.pptx", "poster.psd", "poster.zip"]
    layers = read(out / "poster")
    assert len(layers) == 3 and all(layer.shape == (100, 150, 4) for layer in layers)
    error = np.abs(composite_8bit(layers).astype(int)[..., :3] - np.asarray(Image.open(source)))
    assert error.max() <= 2 and 10 * np.log10(255**2 / np.square(error).mean()) > 48.0
    assert len(list(PSDImage.open(out / "poster.psd"))) == 3


def test_folders_and_equal_names(decompose, tmp_path):
    for name, *size in (("a.png",), ("a.jpg", (64, 64)), ("b.png",)):
        write_image(tmp_path / "in", name, *size)
    out = decompose(tmp_path / "in", "--layers", 2, "--out", "out", "--batch-size", 2)
    assert sorted(path.name for path in out.iterdir()) == ["a", "a_2", "b"]
    alone = decompose(tmp_path / "in" / "b.png", "--layers", 2, "--out", "alone").with_name("alone")
    assert all(np.array_equal(one, two) for one, two in zip(read(out / "b"), read(alone / "b"), strict=True))


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["a.jpg", "a.png", "a_2.png"], ["a", "a_3", "a_2"]),
        (["a_2.png", "a.png", "a.jpg", "a.gif"], ["a_2", "a", "a_3", "a_4"]),
        (["A.png", "a.png"], ["A", "a_2"]),  # one folder on macOS and Windows
        (["caf\u00e9.png", "cafe\u0301.png"], ["caf\u00e9", "cafe\u0301_2"]),
        (["a.png", "a.psd.png", "b.zip.png", "b.png"], ["a", "a.psd_2", "b.zip", "b_2"]),  # a.psd is a file of a.png
    ],
)
def test_no_image_is_written_over_another(names, expected):
    places = targets([Path("in", name) for name in names], Path("out"))
    assert [place.name for place in places.values()] == expected


def test_layers_of_an_earlier_stack_do_not_stay(decompose, tmp_path):
    source = write_image(tmp_path / "in")
    out = decompose(source, "--layers", 4, "--out", "out")
    mine = [out / "poster" / name for name in ("05_sketch.png", "layer_3.png", "notes.txt")]
    for path in mine:
        path.write_bytes(b"a person's own")
    assert len(list((out / "poster").glob("0?_layer*"))) == 3
    decompose(source, "--layers", 2, "--out", "out")
    names = {"00_background.png", "01_layer_1.png", *(path.name for path in mine)}
    assert {path.name for path in (out / "poster").iterdir()} == names
    for path in mine:
        path.unlink()
    error = np.abs(composite_8bit(read(out / "poster")).astype(int)[..., :3] - np.asarray(Image.open(source)))
    assert error.max() <= 2
    decompose(source, "--layers", 2, "--out", "out", "--recursive", 1)
    assert all("layer" in path.name for path in (out / "poster").iterdir()), "the ground's own file is gone as well"


@pytest.mark.parametrize(
    ("out", "options", "sentence"),
    [
        ("file", [], "--out: file/poster lies below {}, which is a file, expected a folder"),
        ("file/deep/er", [], "--out: file/deep/er/poster lies below {}, which is a file"),
        ("taken", [], "--out: taken/poster is a file, expected a folder"),
        ("folder", ["--format", "zip"], "--out: folder/poster.zip is a folder, expected a file"),
    ],
)
def test_a_place_that_cannot_be_written_is_found_before_the_work(
    decompose, tmp_path, capsys, monkeypatch, out, options, sentence
):
    monkeypatch.setattr("stages.decompose.open_model", lambda _: pytest.fail("the work began"))
    Path("file").write_text("")
    Path("folder/poster.zip").mkdir(parents=True)
    Path("taken").mkdir()
    Path("taken/poster").write_text("")
    decompose(write_image(tmp_path / "in"), "--layers", 2, "--out", out, *options, expect=2)
    assert f"error: {sentence.format(Path('file').absolute())}" in capsys.readouterr().err


def test_a_folder_without_permission_is_found_before_the_work(tmp_path, monkeypatch):
    monkeypatch.setattr("os.access", lambda *_: False)
    with pytest.raises(UserError, match=r"--out: .* cannot be written: no permission"):
        check_place(tmp_path / "new" / "poster", "--out", folder=True)


@pytest.mark.parametrize("name", [b"caf\xe9.png", b"\xff\xfe.png", "猫.png".encode()])
def test_a_name_that_the_terminal_cannot_show_ends_nothing(model, tmp_path, name):
    """In a process of its own, whose terminal knows ASCII alone, or UTF-8."""
    good = write_image(tmp_path / "in", "z.png")
    Path(os.fsdecode(os.path.join(os.fsencode(tmp_path / "in"), name))).write_bytes(good.read_bytes())  # noqa: PTH118
    (tmp_path / "in" / "._z.png").write_bytes(b"\0\5\x16\7")
    for number, encoding in enumerate(("ascii", "utf-8")):
        out = tmp_path / f"out{number}"
        command = [sys.executable, "-m", "stages.decompose", tmp_path / "in", "--layers", "2", "--out", out]
        effort = ["--model", model, "--steps", "1", "--tries", "1"]
        env = environment(tmp_path, PYTHONIOENCODING=encoding)
        done = subprocess.run([*command, *effort], cwd=tmp_path, env=env, capture_output=True, check=False)
        assert done.returncode == 0, done.stderr
        assert {os.fsencode(path.name) for path in out.iterdir()} == {name[:-4], b"z"}
        assert done.stdout.count(b"recomposed within") == 2


def test_good_images_with_bad_metadata_are_taken_apart(decompose, tmp_path):
    names = ("EXIF twice", "EXIF of garbage", "several images, as of a telephone", "a profile of 2 MB")
    (tmp_path / "in").mkdir()
    for number, name in enumerate(names):
        (tmp_path / "in" / f"{number}.png").write_bytes(GOOD[name])
    out = decompose(tmp_path / "in", "--layers", 2, "--out", "out")
    assert sorted(path.name for path in out.iterdir()) == ["0", "1", "2", "3"]


def test_a_layer_is_split_again_and_all_parts_flatten_to_the_image(decompose, tmp_path):
    source = write_image(tmp_path / "in")
    out = decompose(source, "--layers", 2, "--out", "out", "--recursive", 1)
    files = sorted(path.name for path in (out / "poster").iterdir())
    assert 2 < len(files) <= 4 and files[0] == "00_layer_0_0.png"
    error = np.abs(composite_8bit(read(out / "poster")).astype(int)[..., :3] - np.asarray(Image.open(source)))
    assert error.max() <= 6, "each split rounds once more"


def test_alpha_of_the_image_is_that_of_the_stack(decompose, tmp_path):
    image = Image.open(write_image(tmp_path / "in", mode="RGBA"))
    image.putalpha(Image.linear_gradient("L").resize(image.size))
    image.save(tmp_path / "in" / "poster.png")
    out = decompose(tmp_path / "in" / "poster.png", "--layers", 2, "--out", "out")
    flat = composite_8bit(read(out / "poster"))[..., 3].astype(int)
    assert np.abs(flat - np.asarray(image)[..., 3]).max() <= 2


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--layers", "0"], "--layers: got '0', expected auto or 1 to 20"),
        (["--layers", "21"], "--layers: got '21'"),
        (["--layers", "many"], "--layers: got 'many'"),
        (["--layers", "2.5"], "--layers: got '2.5'"),
        (["--layers", "2", "--guidance", "-1"], "--guidance: got -1.0"),
        (["--layers", "2", "--guidance", "nan"], "--guidance: got nan"),
        (
            ["--layers", "2", "--guidance", "4"],
            "guidance: got 4, expected 1: this network was trained without captions",
        ),
        (["--layers", "2", "--format", "gif"], "--format: got 'gif', expected png, psd"),
        (["--layers", "2", "--format", ""], "--format: got 'nothing'"),
        (["--layers", "2", "--batch-size", "0"], "--batch-size: got 0"),
        (["--layers", "2", "--recursive", "-1"], "--recursive: got -1"),
        (["--layers", "2", "--model", "nowhere/at/all"], "no folder at nowhere/at/all"),
    ],
)
def test_bad_arguments_are_one_sentence_and_write_nothing(decompose, tmp_path, capsys, arguments, sentence):
    out = decompose(write_image(tmp_path / "in"), "--out", "out", *arguments, expect=2)
    error = capsys.readouterr().err.strip()
    assert error.startswith("error: ") and sentence in error and "\n" not in error
    assert not out.exists()


def test_bad_images_are_named_and_the_others_done(decompose, tmp_path, capsys):
    good = write_image(tmp_path / "in")
    (tmp_path / "in" / "text.png").write_text("no image")
    Image.new("RGB", (1, 1)).save(tmp_path / "in" / "dot.png")
    out = decompose(tmp_path / "in", "--layers", 2, "--out", "out", expect=2)
    error = next(line for line in capsys.readouterr().err.splitlines() if line.startswith("error: "))
    assert "text.png: not a readable image" in error and "dot.png: 1x1 pixels" in error
    assert [path.name for path in out.iterdir()] == [good.stem]
    decompose(tmp_path / "nothing", "--layers", 2, "--out", "out", expect=2)
    assert "nothing: no image; expected a file, a folder" in capsys.readouterr().err


@pytest.mark.parametrize("options", [["--offload", "models"], ["--offload", "blocks"], ["--precision", "bf16"]])
def test_where_weights_wait_changes_nothing_and_half_precision_little(decompose, tmp_path, options):
    source = write_image(tmp_path / "in")
    plain = read(decompose(source, "--layers", 2, "--out", "out") / "poster")
    other = read(decompose(source, "--layers", 2, "--out", "other", *options).with_name("other") / "poster")
    difference = max(np.abs(a.astype(int) - b).mean() for a, b in zip(plain, other, strict=True))
    assert difference == 0.0 if options[0] == "--offload" else 0.0 < difference < 4.0


def test_auto_takes_what_the_network_fills(decompose, tmp_path, model):
    out = decompose(write_image(tmp_path / "in"), "--layers", "auto", "--out", "out")
    assert 1 <= len(read(out / "poster")) <= 3, "the folder says that it was trained for three"


def test_auto_wants_a_network_that_has_seen_empty_layers(decompose, tmp_path, model, capsys):
    other = tmp_path / "other"
    shutil.copytree(model, other)
    save_trained_for(read_trained_for(model).model_copy(update={"surplus_layers": None}), other)
    decompose(write_image(tmp_path / "in"), "--layers", "auto", "--out", "out", "--model", other, expect=2)
    assert "layers: got auto, expected a number" in capsys.readouterr().err


def test_small_networks_try_several_times_and_large_ones_take_their_steps(model):
    small = Decomposer.from_pretrained(str(model), "cpu")
    assert effort_of(small) == Effort(steps=2, tries=8)
    assert effort_of(replace(small, trained_for=RELEASED)) == Effort(steps=50, tries=1)
    image = np.full((40, 40, 4), 255, np.uint8)
    usual, said = (layers_of(small, [image], 2, **effort)[0] for effort in ({}, {"steps": 2, "tries": 8}))
    assert all(np.array_equal(*pair) for pair in zip(usual, said, strict=True))
