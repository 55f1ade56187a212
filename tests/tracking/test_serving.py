"""A registered model as `mlflow models serve` runs it, and what it says of bad requests and other weights."""

import base64
import io
import json
import shutil
import sys
import urllib.error
import urllib.request
from types import SimpleNamespace

import mlflow
import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from inference import images
from inference.decomposer import Decomposer
from layers.dataset.digest import digest
from layers.imaging.codec import decode_rgba, encode_png
from layers.imaging.compositing import composite_8bit
from stages.serve import CONFIG
from tests.support import sample_images
from tests.support.imports import ROOMS, ROOT
from tests.support.servers import serving
from tests.support.workspace import environment, run
from tests.tracking.registered import FOLDER, enter_project, evaluate, save_tiny
from tracking.run import tracking_uri
from tracking.serving import ConfigError, RequestError, ServedDecomposer, decode_image
from tracking.versions import Registry, WeightsError

MODEL = "models:/smoke-decomposer@champion"


@pytest.fixture(scope="module")
def project(tmp_path_factory, bucketed_root):
    """A project whose champion is a tiny model."""
    root = tmp_path_factory.mktemp("served") / "my project"
    with pytest.MonkeyPatch.context() as patch:
        params = enter_project(root, bucketed_root, patch)
        evaluate(params)
        Registry(params).set_alias("champion", 1)
    return root


@pytest.fixture(scope="module")
def server(project):
    """As in a clone: the code lies in the project, and neither PYTHONPATH nor DVC_ROOT says where."""
    for name in ROOMS:
        for path in (ROOT / name).rglob("*.py"):
            (project / path.relative_to(ROOT)).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(path, project / path.relative_to(ROOT))
    env = environment(project, MLFLOW_TRACKING_URI="sqlite:///mlruns/mlflow.db", PYTHONPATH=None, DVC_ROOT=None)
    with serving(["models", "serve", "-m", MODEL, "--env-manager", "local"], "/ping", project, env) as uri:
        yield uri


@pytest.fixture
def here(project, monkeypatch):
    monkeypatch.chdir(project)
    monkeypatch.setenv("DVC_ROOT", str(project))
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    mlflow.set_tracking_uri(tracking_uri())
    return project


def poster(height=50, width=70):
    rng = np.random.default_rng(0)
    image = np.full((height, width, 4), (250, 240, 200, 255), np.uint8)
    image[10:30, 20:50, :3] = rng.integers(0, 255, 3)
    return image


def encoded(data):
    return base64.b64encode(data).decode()


def ask(uri, *images, **params):
    """Base64 files, or one dictionary of inputs."""
    rows = {"dataframe_records": [{"picture": text} for text in images]}
    if images and isinstance(images[0], dict):
        rows = {"inputs": images[0]}
    return post(uri, json.dumps(rows | {"params": params}).encode())


def post(uri, body, kind="application/json"):
    request = urllib.request.Request(f"{uri}/invocations", body, {"Content-Type": kind})
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            return answer.status, json.load(answer)
    except urllib.error.HTTPError as error:
        return error.code, json.load(error)


def direct(root, image, layers, steps, seed):
    """The same in this process."""
    model = Decomposer.from_pretrained(str(root / FOLDER), torch.device("cpu"))
    (stack,) = images.layers_of(model, [image], layers, steps=steps, tries=1, seed=seed)
    return stack


def layers_of(answer):
    return [decode_rgba(base64.b64decode(layer), "layer") for layer in answer["layers"]]


def test_layers_over_http_are_those_of_the_decomposer(server, project):
    image = poster()
    jpeg = io.BytesIO()
    Image.fromarray(image[..., :3]).save(jpeg, "JPEG")
    status, answer = ask(server, encoded(encode_png(image)), encoded(jpeg.getvalue()), layers=3, steps=2, seed=5)
    assert status == 200, answer
    first, second = answer["predictions"]
    assert (first["width"], first["height"]) == (70, 50) == (second["width"], second["height"])
    np.testing.assert_array_equal(layers_of(first), direct(project, image, 3, 2, 5))
    assert np.abs(composite_8bit(layers_of(first)).astype(int) - image).max() <= 2
    assert len(second["layers"]) == 3
    status, answer = ask(server, {"picture": [encoded(encode_png(image))]}, layers=3, steps=2, seed=5)
    assert answer["predictions"] == [first], "MLflow's other form, and alone as beside others"
    # What is not said is what the signature says.
    status, answer = ask(server, encoded(encode_png(image)))
    assert status == 200 and len(answer["predictions"][0]["layers"]) == 4


@pytest.mark.parametrize(
    "make", [sample_images.mpo, lambda **said: sample_images.encoded(sample_images.colours(), "PNG", **said)]
)
def test_photographs_are_turned_as_their_exif_says(make):
    found = decode_image(encoded(make(exif=sample_images.turned(6))), "image 0").astype(int)
    upright = np.rot90(np.asarray(sample_images.colours()), -1)
    assert found.shape == (60, 40, 4) and np.abs(found[..., :3] - upright).mean() < 3.0


@pytest.mark.parametrize("name", ["EXIF of garbage, PNG", "a profile of 2 MB", "EXIF twice"])
def test_metadata_do_not_decide_what_is_served(name):
    assert decode_image(encoded(sample_images.GOOD[name]), "image 0").shape == (40, 60, 4)


@pytest.mark.parametrize("kind", ["EPS", "GIF", "TIFF"])
def test_no_other_format_is_opened(kind):
    with pytest.raises(RequestError, match="expected PNG, JPEG"):
        decode_image(encoded(sample_images.encoded(sample_images.colours(), kind)), "image 0")


def bomb():
    file = io.BytesIO()
    Image.new("L", (6000, 6000)).save(file, "PNG")
    return encoded(file.getvalue())


BAD = {
    "not base64": (["?"], {}, "image 0: not base64; expected a PNG or JPEG file in base64"),
    "no image": ([encoded(b"hello")], {}, "image 0: not a readable image (cannot identify its format"),
    "a path": (["/etc/passwd"], {}, "image 0: not base64"),
    "too many pixels": ([bomb()], {}, "image 0: 6000x6000 is above 16777216 pixels"),
    "too many bytes": (["A" * (45 * 2**20)], {}, "image 0: above 33554432 bytes"),
    "half an image": ([encoded(encode_png(poster())[:90])], {}, "image 0: not a readable image"),
    "no layers": ([encoded(encode_png(poster()))], {"layers": 0}, "layers: got 0, expected 1 to 20"),
    "many steps": ([encoded(encode_png(poster()))], {"steps": 10**6}, "steps: got 1000000, expected 1 to 200"),
    "long caption": ([encoded(encode_png(poster()))], {"caption": "a" * 5000}, "caption: got 5000 characters"),
    "guidance without text": (
        [encoded(encode_png(poster()))],
        {"guidance": 4.0},
        "guidance: got 4, expected 1: this network was trained without captions",
    ),
    "less than no guidance": (
        [encoded(encode_png(poster()))],
        {"guidance": -1},
        "guidance: got -1.0, expected 0 to 100",
    ),
    "too much together": (
        [encoded(encode_png(np.zeros((3000, 4000, 4), np.uint8)))] * 2,
        {"layers": 20},
        "20 layers of 2 images of 24000000 pixels; expected at most 5 of this size",
    ),
    "a parameter that is none": (
        [encoded(encode_png(poster()))],
        {"layerz": 3},
        "params: unknown layerz; expected layers, steps, tries, seed, caption, guidance",
    ),
    "nothing for a number": ([encoded(encode_png(poster()))], {"layers": None}, "layers: got None, expected a long"),
    "part of a layer": ([encoded(encode_png(poster()))], {"layers": 3.5}, "layers: got 3.5, expected a long"),
    "a number for a column": ([{"picture": 7}], {}, "image 0: not base64"),
    "no image at all": ([], {}, None),
    "too many": ([encoded(encode_png(poster()))] * 9, {}, "got 9 images, expected 1 to 8"),
    "another column": ([{"image": ["x"]}], {}, "inputs: unknown image; expected picture"),
    "a number": ([{"picture": [3]}], {}, None),
    "words for numbers": ([encoded(encode_png(poster()))], {"layers": "many"}, "layers: got 'many', expected a long"),
}


@pytest.mark.parametrize("case", BAD)
def test_a_bad_request_is_one_sentence_and_the_server_lives(server, case):
    given, params, sentence = BAD[case]
    status, answer = ask(server, *given, **params)
    assert 400 <= status < 500
    if sentence is not None:
        assert answer["message"].startswith(sentence) and "\n" not in answer["message"]
    assert "stack_trace" not in answer
    assert urllib.request.urlopen(f"{server}/ping", timeout=5).status == 200


NO_FORM = "the request: expected a JSON object with one of dataframe_records, dataframe_split, inputs, instances"
GOOD = json.dumps([{"picture": encoded(encode_png(poster()))}])


@pytest.mark.parametrize(
    ("body", "kind", "sentence"),
    [
        ('{"picture": 7}', "application/json", NO_FORM),
        ("[" * 100_000, "application/json", NO_FORM),
        ("{", "application/json", NO_FORM),
        ('{"messages": 7}', "application/json", NO_FORM),
        ('{"inputs": 7}', "application/json", "the request cannot be read: Model is missing inputs"),
        ('{"dataframe_split": 7}', "application/json", "the request cannot be read: Dataframe split format must be"),
        (f'{{"dataframe_records": {GOOD}, "layerz": 3}}', "application/json", "the request: unknown layerz; expected"),
        (f'{{"dataframe_records": {GOOD}, "params": 7}}', "application/json", "params: got int, expected an object"),
        ("a,b\n1,2\n3,4,5", "text/csv", "the request cannot be read: "),
        ("no table", "application/vnd.apache.parquet", "the request cannot be read: "),
    ],
)
def test_a_request_of_another_form_is_one_sentence_without_paths(server, body, kind, sentence):
    status, answer = post(server, body.encode(), kind)
    assert status == 400 and answer["message"].startswith(sentence) and "\n" not in answer["message"]
    assert not {"stack_trace", "traceback"} & answer.keys() and "/site-packages/" not in json.dumps(answer)


def test_a_fault_of_ours_is_not_the_requests_and_shows_no_traceback(here, monkeypatch):
    model = mlflow.pyfunc.load_model(MODEL)

    def broken(*args, **kwargs):
        raise RuntimeError("secret")

    monkeypatch.setattr(Decomposer, "decompose", broken)
    with pytest.raises(mlflow.MlflowException, match=r"^the model failed with RuntimeError$") as caught:
        model.predict({"picture": [encoded(encode_png(poster()))]})
    assert caught.value.get_http_status_code() == 500


@pytest.mark.parametrize(("height", "width"), [(1, 1), (3, 400), (700, 20)])
def test_any_size_comes_back_in_its_own(here, height, width):
    image = np.full((height, width, 4), 255, np.uint8)
    (answer,) = mlflow.pyfunc.load_model(MODEL).predict({"picture": [encoded(encode_png(image))]}, {"steps": 1})
    assert {layer.shape for layer in layers_of(answer)} == {(height, width, 4)}


def test_other_weights_are_refused(here):
    registered = digest(FOLDER)
    kept = here / "kept"
    (here / FOLDER).rename(kept)
    try:
        with pytest.raises(WeightsError, match=rf"no weights at .*; expected md5 {registered}, which dvc pull"):
            mlflow.pyfunc.load_model(MODEL)
        save_tiny(here / FOLDER, seed=7)
        with pytest.raises(WeightsError) as caught:
            mlflow.pyfunc.load_model(MODEL)
        assert digest(FOLDER) in str(caught.value) and registered in str(caught.value)
        assert "dvc pull or dvc checkout" in str(caught.value)
    finally:
        shutil.rmtree(here / FOLDER, ignore_errors=True)
        kept.rename(here / FOLDER)


def test_a_caption_guides_as_asked_or_as_the_version_was_evaluated(tmp_path, bucketed_root, monkeypatch):
    params = enter_project(tmp_path / "project", bucketed_root, monkeypatch)
    folder = str(save_tiny(tmp_path / "project" / FOLDER, text=True))
    evaluate(params.model_copy(update={"evaluate": params.evaluate.model_copy(update={"guidance": 4.0})}))
    model = mlflow.pyfunc.load_model("models:/smoke-decomposer/1")
    direct = Decomposer.from_pretrained(folder, "cpu")

    def same(expected, **params):
        how = {"layers": 2, "steps": 2, "caption": "a poster", **params}
        (answer,) = model.predict({"picture": [encoded(encode_png(poster()))]}, how)
        (stack,) = images.layers_of(
            direct, [poster()], 2, captions=[how["caption"]], steps=2, tries=1, guidance=expected
        )
        return all(np.array_equal(*pair) for pair in zip(layers_of(answer), stack, strict=True))

    assert same(4.0) and same(2.5, guidance=2.5) and same(1.0, guidance=1) and not same(1.0)
    assert same(1.0, caption=""), "where nothing is said there is nothing to guide by"


def test_weights_are_kept_as_the_server_is_told(here, monkeypatch):
    def kept(**config):
        model = mlflow.pyfunc.load_model(MODEL, model_config=config).unwrap_python_model()._model
        return model.dtype, hasattr(model.network.transformer, "_hf_hook")

    assert kept() == (torch.float32, False)
    assert kept(precision="bf16", offload="models") == (torch.bfloat16, True)
    monkeypatch.setenv(CONFIG, '{"offload": "models"}')
    assert kept() == (torch.float32, True)
    with pytest.raises(ConfigError, match=r"^model_config: precision: got 'fp8', expected one of auto, fp32, bf16$"):
        kept(precision="fp8")


def test_a_version_from_before_guidance_tries_and_precision_is_served(here):
    served = ServedDecomposer()
    served.load_context(SimpleNamespace(model_config={"weights": str(FOLDER), "md5": digest(FOLDER)}))
    params = {"layers": 2, "steps": 2, "seed": 5, "caption": ""}
    (answer,) = served.predict(None, pd.DataFrame({"picture": [encoded(encode_png(poster()))]}), params)
    np.testing.assert_array_equal(layers_of(answer), direct(here, poster(), 2, 2, 5))


def test_from_elsewhere_the_project_is_named_by_dvc_root(project, server, tmp_path):
    program = f"import mlflow; print(mlflow.pyfunc.load_model({MODEL!r}).predict({{'picture': []}}))"
    known = {"PYTHONPATH": None, "MLFLOW_TRACKING_URI": f"sqlite:///{project}/mlruns/mlflow.db"}
    found = run([sys.executable, "-c", program], tmp_path, check=False, DVC_ROOT=str(project), **known)
    assert found.stderr.strip().endswith("got 0 images, expected 1 to 8"), found.stderr
    lost = run([sys.executable, "-c", program], tmp_path, check=False, DVC_ROOT=None, **known)
    assert lost.stderr.strip().endswith("is outside of it: start in the project or set DVC_ROOT"), lost.stderr


def test_versions_that_were_registered_before_the_rooms_moved_still_load():
    """Their copy of served_model.py imports the former place."""
    import training.serving

    assert training.serving.ServedDecomposer is ServedDecomposer
