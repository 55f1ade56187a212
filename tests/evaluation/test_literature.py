from itertools import groupby, pairwise
from pathlib import Path

import pytest

from evaluation.literature import decomposition_rows, table

EVALUATION = Path(__file__).resolve().parents[2] / "docs" / "evaluation.md"
# Baselines of the paper's table that the documentation leaves out.
UNTOLD = ("VLM Base + Hi-SAM", "Yolo Base + Hi-SAM")
DECOMPOSITION = ("crello_decomposition", "crello_ablation")


@pytest.mark.parametrize("name", [*DECOMPOSITION, "aim500_reconstruction"])
def test_every_table_says_where_it_is_from_and_what_is_not_known(name):
    found = table(name)
    assert "arXiv 2512.15603" in found["source"] and "Table" in found["source"]
    assert found["dataset"] and found["columns"]
    assert found["caveats"] and all(isinstance(caveat, str) for caveat in found["caveats"])
    names = [row["row"] for row in found["rows"]]
    assert len(names) == len(set(names)) == 4


@pytest.mark.parametrize("name", DECOMPOSITION)
def test_every_method_has_six_levels_that_merging_never_makes_worse(name):
    grouped = [list(rows) for _, rows in groupby(decomposition_rows(name), key=lambda row: row["row"])]
    assert len(grouped) == 4
    for rows in grouped:
        assert [row["merges"] for row in rows] == [0, 1, 2, 3, 4, 5]
        for row in rows:
            assert list(row) == ["merges", "row", "dataset", "rgb_l1", "alpha_iou", "cost"]
            assert row["dataset"] == "Crello test, published"
            assert 0 < row["rgb_l1"] < 0.3 < row["alpha_iou"] < 1
            assert row["cost"] == pytest.approx((row["rgb_l1"] + 1 - row["alpha_iou"]) / 2, abs=1e-9)
        for fewer, more in pairwise(rows):
            assert more["rgb_l1"] < fewer["rgb_l1"] and more["alpha_iou"] > fewer["alpha_iou"]


def test_what_can_be_downloaded_is_second_hand_and_known_at_0_and_5_merges():
    found = table("crello_released")
    assert "model card of inclusionAI/Ming-Image-0.1-Design-Layer" in found["source"]
    assert "Second-hand" in found["caveats"][0] and any("layer plan" in caveat for caveat in found["caveats"])
    values = {
        (row["row"], row["merges"]): (row["rgb_l1"], row["alpha_iou"]) for row in decomposition_rows("crello_released")
    }
    assert values == {
        ("Qwen-Image-Layered released, 640 px", 0): (0.1481, 0.7131),
        ("Qwen-Image-Layered released, 640 px", 5): (0.0880, 0.8672),
        ("Qwen-Image-Layered released, 1024 px", 0): (0.1409, 0.7177),
        ("Qwen-Image-Layered released, 1024 px", 5): (0.0736, 0.8749),
        ("CLEAR-1024, told a layer plan", 0): (0.0574, 0.8923),
        ("CLEAR-1024, told a layer plan", 5): (0.0314, 0.9424),
    }


def test_released_weights_are_far_below_the_papers_fine_tuned_row_as_the_documentation_says():
    rows = {(row["row"], row["merges"]): row for row in decomposition_rows()}
    tuned = rows["Qwen-Image-Layered-I2L", 0]
    for pixels in (640, 1024):
        released = rows[f"Qwen-Image-Layered released, {pixels} px", 0]
        assert released["rgb_l1"] > 2 * tuned["rgb_l1"] and released["alpha_iou"] < tuned["alpha_iou"] - 0.15
    lines = EVALUATION.read_text(encoding="utf-8").splitlines()
    for name in dict.fromkeys(row["row"] for row in decomposition_rows() if row["row"] not in UNTOLD):
        first, last = rows[name, 0], rows[name, 5]
        figures = " | ".join(f"{row[key]:.4f}" for row in (first, last) for key in ("rgb_l1", "alpha_iou"))
        assert any(line.startswith(f"| {name} |") and figures in line for line in lines), name


def test_the_drawn_rows_are_those_of_both_tables():
    assert decomposition_rows() == decomposition_rows("crello_decomposition", "crello_released")
    assert len(decomposition_rows()) == 4 * 6 + 3 * 2


def test_values_as_printed():
    values = {
        (row["row"], row["merges"]): (row["rgb_l1"], row["alpha_iou"], row["cost"])
        for name in DECOMPOSITION
        for row in decomposition_rows(name)
    }
    assert values["Qwen-Image-Layered-I2L", 0] == (0.0594, 0.8705, 0.09445)
    assert values["Qwen-Image-Layered-I2L", 5] == (0.0363, 0.9160, 0.06015)
    assert values["LayerD", 0] == (0.0709, 0.7520, 0.15945)
    assert values["VLM Base + Hi-SAM", 5] == (0.0726, 0.7589, 0.15685)
    assert values["Yolo Base + Hi-SAM", 2] == (0.0710, 0.7169, 0.17705)
    assert values["Qwen-Image-Layered-I2L w/o LRM", 0] == (0.2809, 0.3725, 0.4542)
    assert values["Qwen-Image-Layered-I2L w/o RM", 3][:2] == (0.1173, 0.7847)
    assert values["Qwen-Image-Layered-I2L w/o M", 4][:2] == (0.0966, 0.8310)


def test_the_ablation_ends_with_the_papers_own_row():
    first, second = (table(name)["rows"] for name in DECOMPOSITION)
    assert first[-1] == second[-1]


def test_reconstruction_is_in_range_and_as_printed():
    rows = {row["row"]: row for row in table("aim500_reconstruction")["rows"]}
    for row in rows.values():
        assert 30 < row["psnr"] < 40 and 0.9 < row["ssim"] < 1 and 5 < row["rfid"] < 20 and 0 < row["lpips"] < 0.1
    ours = rows["RGBA-VAE"]
    assert (ours["base"], ours["psnr"], ours["ssim"], ours["rfid"], ours["lpips"]) == (
        "Qwen-Image",
        38.8252,
        0.9802,
        5.3132,
        0.0123,
    )


def test_an_unknown_table_is_named_with_those_there_are():
    with pytest.raises(KeyError, match=r"no table 'crello' in literature\.yaml, expected one of crello_decomposition"):
        table("crello")
