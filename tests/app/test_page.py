"""The page in a browser, its server by hand: real uploads, every edit, a download, and what it has to refuse."""

import http.client
import json
import os
import signal
import socket
import struct
import subprocess
import zlib
from pathlib import Path
from urllib.parse import urlsplit

import numpy as np
import pytest
from PIL import Image, ImageDraw
from psd_tools import PSDImage

from tests.app.visit import Visit, decoded, once_more
from tests.support.browser import CHROMIUM, Browser
from tests.support.networks import save_tiny
from tests.support.workspace import environment, make_workspace, stage


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return make_workspace(tmp_path_factory.mktemp("app") / "project")


@pytest.fixture(scope="module")
def address(root, tmp_path_factory):
    model = save_tiny(tmp_path_factory.mktemp("model"), text=True)
    command = stage("app", "--model", str(model), "--port", "0", "--steps", "2", "--tries", "2")
    env = environment(root, GRADIO_TEMP_DIR=str(root / "gradio"))
    with (
        (root.parent / "log").open("w") as log,
        subprocess.Popen(command, cwd=root, env=env, stdout=subprocess.PIPE, stderr=log, text=True) as server,
    ):
        line = server.stdout.readline()
        assert line.startswith("app: http://127.0.0.1:"), (root.parent / "log").read_text()
        try:
            yield line.removeprefix("app: ").strip()
            # An open tab keeps a connection, which does not keep the server.
            server.send_signal(signal.SIGINT)
            server.wait(20)
        finally:
            server.kill()
    # What the page does not have to tell its visitors, it would tell the terminal.
    assert "Traceback" not in (root.parent / "log").read_text()


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    if CHROMIUM is None:
        pytest.skip("no Chromium")
    browser = Browser(tmp_path_factory.mktemp("browser"))
    yield browser
    browser.close()


@pytest.fixture(scope="module")
def poster(tmp_path_factory):
    image = Image.new("RGB", (240, 160), (240, 220, 180))
    draw = ImageDraw.Draw(image)
    draw.ellipse((20, 30, 110, 120), fill=(200, 40, 60))
    draw.rectangle((100, 80, 220, 140), fill=(30, 90, 160))
    path = tmp_path_factory.mktemp("images") / "poster.png"
    image.save(path)
    return path


@once_more
def test_an_image_is_dropped_edited_and_downloaded(browser, address, poster, root, tmp_path):
    for path in browser.downloads.iterdir():
        path.unlink()
    visit = Visit(browser, address)
    visit.upload(poster)
    image = np.asarray(Image.open(poster).convert("RGBA")).astype(int)
    assert np.array_equal(visit.seen(), image)
    visit.count("3")
    assert visit.click("#decompose") == "3 layers, recomposed within 1 of 255."
    assert visit.names() == ["layer 2", "layer 1", "background"], "the top one first"
    thumbnails = browser.js("[...document.querySelectorAll('#layers .thumbnail img')].map((image) => image.src)")
    assert len({*thumbnails}) == 3 and all(decoded(source).shape == (96, 144, 4) for source in thumbnails)
    behind = "(s) => getComputedStyle(document.querySelector(s)).backgroundImage"
    assert all("conic" in browser.js(f"({behind})('{place}')") for place in (".thumbnail img", ".board"))
    whole = visit.seen()
    assert np.abs(whole - image).max() <= 2

    visit.layer("background", "hide")
    without = visit.seen()
    assert without[..., 3].min() < 250 and "hidden" in browser.js("document.querySelector('#layers .unseen').innerText")
    visit.layer("background", "show")
    assert np.array_equal(visit.seen(), whole)

    visit.layer("layer 2", "choose")
    visit.field("x", "40")
    moved = visit.seen()
    assert not np.array_equal(moved, whole)
    visit.field("colour", "#ff0000")
    red = visit.seen()
    assert (red - moved)[..., 0].mean() > 1
    box = browser.js("(({ x, y, width }) => [x, y, width])(document.querySelector('.board').getBoundingClientRect())")
    scale = box[2] / 240
    visit.told(lambda: browser.drag(box[0] + 50, box[1] + 50, -30 * scale, 20 * scale))
    placed = [browser.js(f"Number(document.querySelector('#layers .edit [name={axis}]').value)") for axis in "xy"]
    assert np.abs(np.subtract(placed, (10, 20))).max() <= 1
    visit.layer("layer 2", "restore")
    assert np.array_equal(visit.seen(), whole)

    visit.layer("layer 2", "down")
    assert visit.names() == ["layer 1", "layer 2", "background"] and not np.array_equal(visit.seen(), whole)
    visit.layer("layer 2", "up")
    assert np.array_equal(visit.seen(), whole)

    visit.count("2")
    visit.layer("layer 2", "choose")
    assert visit.layer("layer 2", "split") == "layer 2 is now 2 layers."
    assert visit.names() == ["layer 2.2", "layer 2.1", "layer 1", "background"]
    assert np.abs(visit.seen() - whole).max() <= 6, "each split rounds once more"

    visit.layer("layer 1", "delete")
    assert visit.names() == ["layer 2.2", "layer 2.1", "background"] and not np.array_equal(visit.seen(), whole)
    visit.layer("layer 2.1", "hide")
    last = visit.seen()
    for form in ("psd", "pptx", "ora", "zip"):
        visit.click(f"#downloads button:nth-child({['psd', 'pptx', 'ora', 'zip'].index(form) + 1})")
        finished(browser, f"layers.{form}")
    document = PSDImage.open(browser.downloads / "layers.psd")
    assert [layer.name for layer in document] == ["background", "layer 2.2"], "hidden layers are left out"
    assert np.abs(np.asarray(document.composite(force=True).convert("RGBA")).astype(int) - last).max() <= 2

    folder = Path(os.environ.get("APP_SHOTS", tmp_path))
    folder.mkdir(exist_ok=True)
    for width in (1200, 390):
        browser.resize(width, 900)
        browser.wait(f"innerWidth == {width} && document.documentElement.scrollWidth <= {width}")
        browser.screenshot(folder / f"page_{width}.png")
        assert np.asarray(Image.open(folder / f"page_{width}.png").convert("L"), float).std() > 10
    browser.resize(1200, 900)
    # Gradio ends its stream of the last event when the next one begins, and on a slow machine says so.
    assert [error for error in browser.errors if not error.startswith("AbortError")] == []
    assert {urlsplit(url).netloc for url in browser.requests if not url.startswith("data:")} == {
        urlsplit(address).netloc
    }
    assert not (root / "gradio").exists() or not any(path.is_file() for path in (root / "gradio").rglob("*"))
    assert [path.name for path in root.iterdir() if path.name != "gradio"] == ["params.yaml"], "nothing was written"


def finished(browser, name):
    """Wait until a file has come whole: Chromium writes it under another name."""
    browser.wait("true")
    for _ in range(200):
        if (browser.downloads / name).is_file():
            return
        browser.js("new Promise((done) => setTimeout(done, 50))")
    raise AssertionError(f"{name} never came: {list(browser.downloads.iterdir())}")


@once_more
def test_a_caption_is_read(browser, address, poster):
    visit = Visit(browser, address)
    visit.upload(poster)
    visit.count("2")

    def ground():
        visit.click("#decompose")
        visit.layer("layer 1", "hide")
        return visit.seen()

    silent = ground()
    visit.caption("a red disc above a blue table")
    assert not np.array_equal(ground(), silent)
    visit.caption("")
    assert np.array_equal(ground(), silent)


def header(width, height):
    """The beginning of a PNG that says its size, and no pixel after it."""
    size = struct.pack(">IIBBBBB", width, height, 8, 6, 0, 0, 0)
    chunks = [(b"IHDR", size), (b"IDAT", zlib.compress(b""))]
    packed = (
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)) for kind, data in chunks
    )
    return b"\x89PNG\r\n\x1a\n" + b"".join(packed)


@once_more
def test_bad_input_is_a_sentence_and_changes_nothing(browser, address, poster, tmp_path):
    visit = Visit(browser, address)
    early = visit.click("#decompose", wrong=True)
    assert early == "there is no image yet; drop one first"
    assert "no layers yet" in visit.click("#downloads button", wrong=True)
    visit.upload(poster)
    visit.count("2")
    visit.click("#decompose")
    before = visit.names(), visit.seen()
    frames = [Image.new("RGB", (32, 32), colour) for colour in ("red", "blue")]
    frames[0].save(tmp_path / "animated.gif", save_all=True, append_images=frames[1:])
    Image.new("RGB", (1, 1)).save(tmp_path / "dot.png")
    (tmp_path / "words.png").write_text("<script>alert(1)</script>")
    (tmp_path / "empty.png").write_bytes(b"")
    (tmp_path / "huge.png").write_bytes(header(20000, 20000))
    (tmp_path / "cut.png").write_bytes(poster.read_bytes()[:300])
    with (tmp_path / "heavy.png").open("wb") as file:
        file.truncate(33 * 2**20)
    for name, words in {
        "words.png": "not a readable image",
        "empty.png": "not a readable image",
        "dot.png": "1x1 pixels, expected at least 8 a side",
        "huge.png": "above 12000000 pixels",
        "animated.gif": "2 frames, expected a still image",
        "cut.png": "not a readable image",
        "heavy.png": "too large; expected at most 32 MiB",
    }.items():
        path = tmp_path / name
        said = visit.told(lambda path=path: browser.choose_file("#drop input", path), wrong=True)
        assert words in said and "\n" not in said.strip() and "<" not in said, name
    for words in ("99", "0", "-1", "2.5", "many"):
        visit.count(words)
        assert visit.click("#decompose", wrong=True) == f"layers: got {words!r}, expected auto or 1 to 20"
    visit.count("1")
    visit.layer("layer 1", "choose")
    assert "at least 2 parts" in visit.layer("layer 1", "split", wrong=True)
    visit.layer("layer 1", "hide"), visit.layer("background", "hide")
    assert visit.click("#downloads button", wrong=True) == "all layers are hidden; show at least one"
    visit.layer("layer 1", "show"), visit.layer("background", "show")
    assert visit.names() == before[0] and np.array_equal(visit.seen(), before[1])


def ask(address, method, path, body=None, **headers):
    """Status and text of an answer; the path goes out as it is written here."""
    connection = http.client.HTTPConnection(urlsplit(address).netloc, timeout=20)
    try:
        connection.request(method, path, body, {name.replace("_", "-"): value for name, value in headers.items()})
        answer = connection.getresponse()
        return answer.status, answer.read().decode("utf-8", "replace")
    finally:
        connection.close()


@pytest.mark.parametrize(
    "prefix", ["/gradio_api/file=", "/gradio_api/file/", "/file=", "/static/", "/assets/", "/download/"]
)
def test_no_file_is_sent_by_path(address, root, prefix):
    ups = "../" * 12
    for path in (
        "params.yaml",
        str(root / "params.yaml"),
        "/etc/passwd",
        f"{ups}etc/passwd",
        f"{ups}etc/passwd".replace("/", "%2f"),
    ):
        status, text = ask(address, "GET", prefix + path)
        assert status in (403, 404) and "root:" not in text and "train_vae" not in text, path


@pytest.mark.parametrize(
    "route", ["file=http://127.0.0.1:9/", "proxy=http://127.0.0.1:9/", "stream/a/b/0/playlist-file"]
)
def test_no_address_is_fetched_and_no_file_stored(address, route):
    assert ask(address, "GET", f"/gradio_api/{route}")[0] == 404
    assert ask(address, "POST", "/gradio_api/upload", b"x", content_type="multipart/form-data; boundary=x")[0] == 404


@pytest.mark.parametrize("path", ["/etc/passwd", "params.yaml", "http://example.org/image.png"])
@pytest.mark.parametrize("key", ['"path"', '"p\\u0061th"', '"url"'])
def test_events_that_name_files_are_refused(address, path, key):
    file = f'{{{key}: {json.dumps(path)}, "meta": {{"_type": "gradio.FileData"}}}}'
    body = f'{{"data": [null, [{file}]], "fn_index": 0, "session_hash": "mine", "event_data": null}}'
    status, text = ask(address, "POST", "/gradio_api/queue/join", body, content_type="application/json")
    assert (status, text) == (403, "no event of this page names a file")


def test_only_this_machine_in_small_requests(address):
    port = urlsplit(address).port
    assert ask(address, "GET", "/")[0] == 200
    assert ask(address, "GET", "/", host=f"rebound.example:{port}")[0] == 403
    assert ask(address, "POST", "/image", b"x", origin="http://other.example")[0] == 403
    assert ask(address, "POST", "/image", b"x", content_length=str(33 * 2**20))[0] == 413
    assert ask(address, "POST", "/gradio_api/queue/join", iter([b"x" * 1000] * 100))[0] == 413
    assert ask(address, "POST", "/gradio_api/queue/join", b"not JSON")[0] == 400
    assert ask(address, "DELETE", "/image")[0] == 405
    assert ask(address, "GET", "/download/nothing") == (404, "this file is no longer here; ask the page for it again")
    # Nobody else on the network can even knock.
    with socket.socket() as other, pytest.raises(OSError):
        other.settimeout(2)
        other.connect((socket.gethostbyname(socket.gethostname()), port))
        if socket.gethostbyname(socket.gethostname()).startswith("127."):
            raise OSError("this machine knows no other address of its own")
