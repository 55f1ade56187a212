"""The notebooks run from the first cell to the last, on small data."""

import base64
import io
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


def pictures(notebook):
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", ()) if "data" in output]
    found = [output["data"]["image/png"] for output in outputs if "image/png" in output["data"]]
    return [np.asarray(Image.open(io.BytesIO(base64.b64decode(data)))) for data in found]


@pytest.mark.parametrize("folder", ["", "notebooks"])
def test_inspect_data_shows_buckets_batches_and_pictures(bucketed_root, monkeypatch, folder):
    monkeypatch.chdir(ROOT / folder)
    notebook = execute("inspect_data", monkeypatch, DATA_ROOT=bucketed_root)
    said = text(notebook)
    assert "w96-h64" in said and "dropped: 0" in said
    assert "component: (4, 4, 64, " in said and "layers: (4, " in said
    assert "disc 0" in said, "descriptions of layers are shown"
    charts, sheet = pictures(notebook)
    assert charts.std() > 10 and sheet.std() > 10 and sheet.shape[0] > 6 * 128
