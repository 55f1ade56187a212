"""The notebooks run from the first cell to the last, on small data."""

import base64
import csv
import io
import json
from pathlib import Path

import nbformat
import numpy as np
import pytest
from nbclient import NotebookClient
from PIL import Image

ROOT = Path(__file__).resolve().parents[1]


def execute(name, monkeypatch, **environment):
    for key, value in environment.items():
        monkeypatch.setenv(key, str(value))
    notebook = nbformat.read(ROOT / "notebooks" / f"{name}.ipynb", as_version=4)
    assert not any(cell.get("outputs") for cell in notebook.cells), "outputs are not for git"
    NotebookClient(notebook, timeout=120, kernel_name="python3").execute()
    return notebook


def text(notebook):
    return "".join(
        output.get("text", "") for cell in notebook.cells for output in cell.get("outputs", ()) if "text" in output
    )


def images(notebook):
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", ()) if "data" in output]
    found = [output["data"]["image/png"] for output in outputs if "image/png" in output["data"]]
    return [np.asarray(Image.open(io.BytesIO(base64.b64decode(data)))) for data in found]


@pytest.mark.parametrize("folder", ["", "notebooks"])
def test_inspect_data_shows_buckets_batches_and_images(bucketed_root, monkeypatch, folder):
    monkeypatch.chdir(ROOT / folder)
    notebook = execute("inspect_data", monkeypatch, DATA_ROOT=bucketed_root)
    said = text(notebook)
    assert "w96-h64" in said and "dropped: 0" in said
    assert "component: (4, 4, 64, " in said and "layers: (4, " in said
    assert "disc 0" in said, "descriptions of layers are shown"
    charts, sheet = images(notebook)
    assert charts.std() > 10 and sheet.std() > 10 and sheet.shape[0] > 6 * 128


@pytest.fixture(scope="module")
def reports(tmp_path_factory):
    """What evaluate writes, small and made up."""
    folder = tmp_path_factory.mktemp("reports")
    rng = np.random.default_rng(0)

    def scores():
        return {key: float(rng.uniform(0.1, 0.9)) for key in ("rgb_l1", "alpha_iou", "cost")}

    def write(name, rows):
        with (folder / name).open("w", newline="") as file:
            writer = csv.DictWriter(file, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)

    rows = ("model", "composite_only", "true_layers_through_vae")
    report = {
        "setting": {"samples": 4, "sizes": ["64x64", "96x64"], "skipped": {"broken": "zero bytes"}},
        "decomposition": {row: [{"merges": m} | scores() for m in range(3)] for row in rows},
        "intervals": {row: {key: [value / 2, value * 2] for key, value in scores().items()} for row in rows},
        "recomposition": {"psnr_white": 21.5},
        "vae_layers_nine_backgrounds": {"psnr": 36.3},
        "layers": {"empty_share": 0.03, "order_agreement": None},
        "breakdown": {"layers": {"2": {"samples": 3} | scores()}, "kind": {"text": {"layers": 7} | scores()}},
    }
    (folder / "evaluate.json").write_text(json.dumps(report))
    curves = [
        level | {"row": row, "dataset": "this evaluation"} for row in rows for level in report["decomposition"][row]
    ]
    write("decomposition.csv", [*curves, {"merges": 0} | scores() | {"row": "LayerD", "dataset": "Crello"}])
    samples = [
        {"id": f"{k:03d}"} | scores() | {"composite_only_cost": (0.05, 0.95)[k % 2], "order_agreement": ""}
        for k in range(4)
    ]
    write("evaluate_samples.csv", samples)
    (folder / "panels").mkdir()
    for name in ("01_best", "02_worst"):
        Image.fromarray(rng.integers(0, 255, (40, 120, 3), np.uint8)).save(folder / "panels" / f"{name}.png")
    return folder


@pytest.mark.parametrize("folder", ["", "notebooks"])
def test_inspect_results_shows_scores_curves_and_panels(reports, monkeypatch, folder):
    monkeypatch.chdir(ROOT / folder)
    notebook = execute("inspect_results", monkeypatch, REPORTS=reports)
    said = text(notebook)
    assert "skipped        1" in said and "broken: zero bytes" in said
    assert "better than doing nothing: 2 of 4 images (50.0%)" in said
    assert "psnr_white       21.5000" in said and "order_agreement  -" in said
    tables = [o["data"]["text/plain"] for c in notebook.cells for o in c.get("outputs", ()) if "data" in o]
    report = json.loads((reports / "evaluate.json").read_text())
    assert all(f"{levels[0]['cost']:.4f} [" in "".join(tables) for levels in report["decomposition"].values())
    curves, scatter, best, worst = images(notebook)
    assert curves.std() > 10 and scatter.std() > 10
    for name, shown in (("01_best", best), ("02_worst", worst)):
        assert np.array_equal(shown, np.asarray(Image.open(reports / "panels" / f"{name}.png")))
