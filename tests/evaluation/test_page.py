"""The report page: whole, escaped, self-contained, the same twice, and alive in a browser."""

import copy
import json
import re
import shutil
import subprocess
from html import escape
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image

from evaluation.page import CURVES, Panel, number, write_page

EVIL = "<script>alert(1)</script>"
LITERATURE = "Crello (paper, Table 1)"
ROWS = ("model", "composite_only", "true_layers_through_vae", "layerd")
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
FLAGS = """headless no-sandbox disable-gpu disable-quic no-first-run disable-background-networking
disable-component-update disable-sync virtual-time-budget=3000"""
PROBE = """<script>
const frame = document.querySelector("iframe"), result = { errors: [], up: [], down: [] };
frame.addEventListener("load", () => {
  const page = frame.contentDocument, table = page.querySelector("#samples");
  frame.contentWindow.addEventListener("error", (event) => result.errors.push(event.message));
  const sorted = (button, column) => {
    button.click();
    return [...table.tBodies[0].rows].map((row) => row.cells[column].dataset.value);
  };
  result.sortable = table.dataset.sortable;
  result.widths = [page.documentElement.scrollWidth, page.documentElement.clientWidth];
  table.querySelectorAll("th button").forEach((button, column) => {
    result.up.push(sorted(button, column));
    result.down.push(sorted(button, column));
  });
  document.body.dataset.result = JSON.stringify(result);
});
</script>"""


def contract(samples=9, seed=0):
    """A report, curves, samples and panels whose figures are all different."""
    rng = np.random.default_rng(seed)

    def drawn(*keys):
        return {key: float(rng.uniform(0.1, 0.9)) for key in keys}

    def table(names, counted):
        return {name: {counted: int(rng.integers(100, 999))} | drawn(*CURVES) for name in names}

    report = {
        "setting": {
            "samples": samples,
            "source": "data/rgba_layers, split val",
            "model": "models/weights/refine",
            "layers_asked": "as many as the sample has",
            "text": "none",
            "steps": 12,
            "seed": 31,
            "sizes": ["64x64", "96x64"],
            "device": "cpu",
            "skipped": {f"skipped {EVIL}": "9 layers, expected at most 6 & no more"},
        },
        "decomposition": {row: [{"merges": m} | drawn(*CURVES) for m in range(6)] for row in ROWS},
        "intervals": {row: {key: sorted(rng.uniform(0.1, 0.9, 2).tolist()) for key in CURVES} for row in ROWS},
        "missing": {"layerd": {"lost<1>": "no layers"}},
        "recomposition": drawn("psnr_white", "ssim_white", "lpips_white", "alpha_l1"),
        "vae_layers_nine_backgrounds": drawn("psnr", "ssim", "psnr_white", "lpips", "alpha_l1"),
        "layers": drawn("empty_share", "count_error", "order_agreement"),
        "breakdown": {
            "layers": table("234", "samples"),
            "bucket": table(["64x64", "96x64"], "samples"),
            "kind": table(["text", "group"], "layers"),
        },
        "seconds_per_picture": 0.4321,
        "peak_memory_mib": 812.6,
    }
    curves = [
        {"merges": level["merges"], "row": row, "dataset": "this evaluation"} | {key: level[key] for key in CURVES}
        for row, levels in report["decomposition"].items()
        for level in levels
    ]
    curves += [{"merges": m, "row": "LayerD", "dataset": LITERATURE} | drawn(*CURVES) for m in range(6)]
    rows = [
        {"id": EVIL if k == 0 else f"design {k}", "bucket": "96x64", "layers": 2 + k % 5}
        | drawn(*CURVES, "composite_only_cost", "psnr_white", "ssim_white", "lpips_white", "seconds")
        | {"empty_layers": k % 2, "count_error": k % 3, "order_agreement": (None, "", 0.625)[k % 3]}
        for k in range(samples)
    ]
    panels = [
        Panel(f"best: {EVIL}", "cost 0.067, input & layers", rng.integers(0, 255, (90, 400, 3), np.uint8)),
        Panel("worst", "cost 0.508", rng.integers(0, 255, (90, 900, 3), np.uint8)),
    ]
    return report, curves, rows, panels


def page(tmp_path, *inputs):
    return write_page(tmp_path / "new" / "report.html", *inputs).read_text(encoding="utf-8")


class Elements(HTMLParser):
    """All elements with their attributes, and the text outside scripts and styles."""

    def __init__(self, html):
        super().__init__()
        self.elements, self.words, self.inside = [], [], []
        self.feed(html)
        self.text = " ".join(" ".join(self.words).split())

    def handle_starttag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))
        self.inside = [tag] if tag in ("script", "style") else []

    def handle_endtag(self, tag):
        self.inside = []

    def handle_data(self, data):
        if not self.inside:
            self.words.append(data)


def figures(value, key=""):
    """Every number below a value, as the page writes it."""
    if isinstance(value, dict):
        return [text for name, item in value.items() for text in figures(item, name)]
    if isinstance(value, list):
        return [text for item in value for text in figures(item, key)]
    return [number(value, key)]


def test_every_figure_and_word_of_the_report_is_on_the_page(tmp_path):
    report, curves, samples, panels = contract()
    text = Elements(page(tmp_path, report, curves, samples, panels)).text
    missing = {figure for figure in figures([report, curves, samples]) if figure not in text}
    assert missing == {"composite_only", "true_layers_through_vae"}, "these two are put in words"
    assert "without a prediction, counted as worst: 1" in text
    for words in ("composite only", "true layers through the VAE", "upper bound"):
        assert words in text
    for panel in panels:
        assert panel.title in text and panel.caption in text


def test_the_best_model_is_emphasised_and_references_never_are(tmp_path):
    report, *rest = contract()
    values = {"model": (0.3, 0.6, 0.35), "layerd": (0.2, 0.5, 0.35)}
    for row in ROWS:
        report["decomposition"][row][0] |= dict(zip(CURVES, values.get(row, (0.01, 0.99, 0.01)), strict=True))
    best = re.findall(r'class="best">([^<]*)<', page(tmp_path, report, *rest))
    assert best == ["0.6000", "0.3500", "0.2000", "0.3500"], "a tie is both's"
    del report["decomposition"]["layerd"]
    assert 'class="best"' not in page(tmp_path, report, *rest), "nothing to be better than"


def test_images_better_than_doing_nothing_are_counted(tmp_path):
    report, curves, samples, panels = contract(4)
    for row, cost, nothing in zip(samples, (0.1, 0.2, 0.3, 0.4), (0.2, 0.2, 0.4, 0.3), strict=True):
        row |= {"cost": cost, "composite_only_cost": nothing}
    assert "2 of 4 images (50.0 %)" in Elements(page(tmp_path, report, curves, samples, panels)).text


def test_what_comes_from_data_is_escaped(tmp_path):
    html = page(tmp_path, *contract())
    scripts = [tag for tag, _ in Elements(html).elements if tag == "script"]
    assert scripts == ["script"], "the page's own and no other"
    assert EVIL not in html and html.count("&lt;script&gt;alert(1)&lt;/script&gt;") >= 3


def test_literature_is_dashed_and_labelled(tmp_path):
    report, curves, samples, panels = contract()
    html = page(tmp_path, report, curves, samples, panels)
    assert f"LayerD – {LITERATURE}; not comparable" in Elements(html).text
    # One dashed line a chart; the scatter's diagonal is dotted.
    assert html.count("stroke-dasharray: 4.4") == len(CURVES)
    ours = [row for row in curves if row["dataset"] != LITERATURE]
    html = page(tmp_path, report, ours, samples, panels)
    assert "not comparable" not in html and "stroke-dasharray: 4.4" not in html


def test_nothing_is_fetched(tmp_path):
    html = page(tmp_path, *contract())
    parsed = Elements(html)
    for tag, attributes in parsed.elements:
        for name in {"src", "href", "xlink:href", "action", "srcset", "poster", "data"} & set(attributes):
            assert attributes[name].startswith(("data:", "#")), (tag, name)
    assert "@import" not in html
    assert all(address.startswith("#") for address in re.findall(r"url\(([^)]*)\)", html))
    without_namespaces = re.sub(r' xmlns(:\w+)?="[^"]*"', "", html)
    assert "http://" not in without_namespaces and "https://" not in without_namespaces
    policy = [a["content"] for tag, a in parsed.elements if a.get("http-equiv") == "Content-Security-Policy"]
    assert policy and policy[0].startswith("default-src 'none'")


def test_ids_are_unique_and_references_resolve(tmp_path):
    html = page(tmp_path, *contract())
    ids = [attributes["id"] for _, attributes in Elements(html).elements if "id" in attributes]
    assert len(ids) == len(set(ids))
    assert set(re.findall(r'(?:url\(|href=")#([^)"]*)', html)) <= set(ids)


def test_equal_inputs_give_equal_bytes_and_stay_as_they_were(tmp_path):
    inputs = contract()
    before = copy.deepcopy(inputs[:3])
    first, second = (write_page(tmp_path / name, *inputs).read_bytes() for name in "ab")
    assert first == second
    assert inputs[:3] == before
    assert write_page(tmp_path / "c", *contract(seed=1)).read_bytes() != first


def test_a_bare_report_is_a_page_too(tmp_path):
    report, curves, _, _ = contract()
    report["setting"]["skipped"] = {}
    report["layers"]["order_agreement"] = None
    report["decomposition"] = {"model": report["decomposition"]["model"]}
    for block in ("breakdown", "intervals", "missing", "peak_memory_mib"):
        del report[block]
    text = Elements(page(tmp_path, report, [row for row in curves if row["row"] == "model"], [], [])).text
    assert "order agreement ↑ –" in text
    for words in ("Skipped images", "Every image", "image by image", "composite only", "Where it is hard"):
        assert words not in text


def test_a_panel_must_be_a_image(tmp_path):
    report, curves, samples, _ = contract()
    for image in (np.zeros((4, 4, 4), np.uint8), np.zeros((4, 4, 3)), np.zeros((4, 4), np.uint8)):
        with pytest.raises(ValueError, match=r"panel 'p': expected .*uint8, got"):
            page(tmp_path, report, curves, samples, [Panel("p", "", image)])


def browse(tmp_path, path, *arguments):
    command = [CHROMIUM, *(f"--{flag}" for flag in FLAGS.split()), f"--user-data-dir={tmp_path / 'profile'}"]
    done = subprocess.run([*command, *arguments, path.as_uri()], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.skipif(CHROMIUM is None, reason="no chromium, chromium-browser or google-chrome on PATH")
def test_in_a_browser_the_page_is_drawn_and_its_table_sorts(tmp_path):
    _, _, samples, _ = inputs = contract()
    path = write_page(tmp_path / "report.html", *inputs)
    for width in (1200, 390):
        shot = tmp_path / f"{width}.png"
        browse(tmp_path, path, f"--screenshot={shot}", f"--window-size={width},3000")
        image = np.asarray(Image.open(shot).convert("L"), float)
        assert image.shape == (3000, width)
        bands = image.reshape(10, 300, width).std(axis=(1, 2))
        assert (bands > 3).all(), f"blank at {width} px: {bands.round(1)}"

    # Windows of the browser are not as narrow as a phone; frames are.
    probe = tmp_path / "probe.html"
    probe.write_text(f'<iframe width="390" height="900" srcdoc="{escape(path.read_text())}"></iframe>{PROBE}')
    found = Elements(browse(tmp_path, probe, "--dump-dom")).elements
    (result,) = [json.loads(attributes["data-result"]) for _, attributes in found if "data-result" in attributes]
    assert result["errors"] == [] and result["sortable"] == "true"
    content, room = result["widths"]
    assert content <= room <= 390, "wider than a phone"
    for key, *orders in zip(samples[0], result["up"], result["down"], strict=True):
        for values, reverse in zip(orders, (False, True), strict=True):
            filled = [value if isinstance(samples[0][key], str) else float(value) for value in values if value]
            assert len(values) == len(samples) and filled == sorted(filled, reverse=reverse), key
            assert all(values[: len(filled)]), "what has no value is last"
