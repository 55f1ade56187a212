"""The README's results table is that of the committed reports."""

import json
import re

import pytest

from evaluation import results
from evaluation.results import BEGIN, END, ResultsError, lines, main, replaced


def report(split, strata, **costs):
    def figures(value):
        return {"rgb_l1": value, "alpha_iou": 1.0 - value, "cost": value}

    return {
        "setting": {"split": split, "samples": 7, "weights_md5": "a"},
        "decomposition": {row: [{"merges": 0} | figures(cost)] for row, cost in costs.items()},
        "intervals": {
            row: {key: [value - 0.01, value + 0.02] for key, value in figures(cost).items()}
            for row, cost in costs.items()
        },
        "better_than_nothing": 5 / 7,
        "difference": {"pretrained": {key: {"mean": -0.5, "low": -1.0, "high": 0.25} for key in ("cost", "alpha_iou")}},
        "edits": {row: {kind: {"psnr": 30.04} for kind in ("move", "all")} for row in costs},
        "strata": {
            name: {
                "samples": count,
                "rows": {
                    row: {
                        key: {"mean": value, "low": value - 0.1, "high": value + 0.1}
                        for key, value in figures(cost + shift).items()
                    }
                    for row, cost in costs.items()
                },
            }
            for name, (count, shift) in strata.items()
        },
    }


@pytest.fixture
def folder(tmp_path):
    own = report("test", {"known_assets": (4, 0.05)}, model=0.2, composite_only=0.4)
    real = report("test", {"slide": (5, 0.1)}, model=0.3, pretrained=0.3)
    (tmp_path / "evaluate.json").write_text(json.dumps(own))
    (tmp_path / "evaluate_real.json").write_text(json.dumps(real))
    return tmp_path


def test_columns_are_sets_and_their_parts_and_rows_those_that_are_there(folder):
    # Of four designs there is no interval.
    found = lines(folder)
    assert found[0] == BEGIN and found[-1] == END
    head = next(line for line in found if "cost, lower" in line)
    assert head == "| cost, lower is better | test split (7) | known assets (4) | real: slide (5) |"
    rows = found[found.index(head) + 2 :]
    assert rows[0] == ("| the model | 0.200 (0.190 to 0.220) | 0.250 | 0.400 (0.300 to 0.500) |")
    assert rows[1] == "| the weights that ship | – | – | 0.400 (0.300 to 0.500) |"
    assert rows[2].startswith("| the input as the only layer | 0.400 (") and rows[2].endswith("| – |")
    assert "0.800 (0.790 to 0.820)" in found[next(k for k, line in enumerate(found) if "soft IoU" in line) + 2]


def test_edits_and_what_training_changed_are_told(folder):
    found = lines(folder)
    place = found.index("| PSNR after an edit, dB | move |")
    assert found[place + 2 : place + 4] == ["| the model | 30.0 |", "| the input as the only layer | 30.0 |"]
    assert "On 5 of the 7 designs of the test split" in "\n".join(found)
    assert "cost -0.500 (-1.000 to +0.250), alpha soft IoU -0.500" in "\n".join(found)


def test_a_dataset_without_parts_is_one_column(folder):
    (folder / "evaluate_own.json").write_text(json.dumps(report("all of it", {}, model=0.5)))
    assert any("| own: all (7) |" in line for line in lines(folder))


def test_reports_of_other_weights_are_not_mixed(folder, capsys):
    other = json.loads((folder / "evaluate_real.json").read_text())
    own = json.loads((folder / "evaluate.json").read_text())
    row = {"rows": {"pretrained": {"weights_md5": "c"}}}
    (folder / "evaluate.json").write_text(json.dumps(own | {"setting": own["setting"] | row}))
    for change in ({"weights_md5": "b"}, {"text": "minilm"}, {"rows": {"pretrained": {"weights_md5": "d"}}}):
        (folder / "evaluate_real.json").write_text(json.dumps(other | {"setting": other["setting"] | change}))
        assert not any("slide" in line for line in lines(folder))
        said = capsys.readouterr().err
        assert said.startswith("evaluate_real.json is left out: ") and "in evaluate.json; for a column" in said
    for broken in ("{}", "no json", "[1]"):
        (folder / "evaluate_real.json").write_text(broken)
        with pytest.raises(ResultsError, match=r"evaluate_real\.json: no report of stage evaluate as it is now"):
            lines(folder)


def test_an_incomplete_report_is_one_sentence(folder):
    own = json.loads((folder / "evaluate.json").read_text())
    for lacking in ("edits", "better_than_nothing"):
        (folder / "evaluate.json").write_text(json.dumps({key: own[key] for key in own if key != lacking}))
        with pytest.raises(ResultsError, match=f"a report lacks '{lacking}'; run stage evaluate again"):
            lines(folder)


def test_a_part_of_another_name_stays_in_its_cell(folder):
    (folder / "evaluate_own.json").write_text(json.dumps(report("all", {"a|b\nc": (5, 0.1)}, model=0.5)))
    assert any(r"| own: a\|b c (5) |" in line for line in lines(folder))


def test_what_lies_between_the_markers_is_exchanged(folder, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(results, "ROOT", tmp_path)
    monkeypatch.setattr(lines, "__defaults__", (folder,))
    readme = tmp_path / "README.md"
    readme.write_text(f"before\n{BEGIN}\nold\n{END}\nafter\n")
    assert main(["--check"]) == 1 and main(["--write"]) == 0 and main(["--check"]) == 0
    text = readme.read_text()
    assert text.startswith("before\n") and text.endswith("after\n") and "old" not in text and "0.200" in text
    capsys.readouterr()
    readme.write_text("no markers")
    assert main(["--write"]) == 2 and "expected <!-- results" in capsys.readouterr().err
    with pytest.raises(ResultsError):
        replaced(f"{END}{BEGIN}", ["x"])


def test_a_missing_report_is_one_sentence(tmp_path):
    with pytest.raises(ResultsError, match="expected the report of stage evaluate"):
        lines(tmp_path)


def test_the_readme_holds_the_table_of_the_committed_reports():
    assert main(["--check"]) == 0, "python -m evaluation.results --write"


def test_the_readme_has_figures_of_quality_in_that_table_alone():
    before, _, rest = (results.ROOT / "README.md").read_text(encoding="utf-8").partition(BEGIN)
    prose = re.sub(r"^```.*?^```\s*$", "", before + rest.partition(END)[2], flags=re.MULTILINE | re.DOTALL)
    assert re.findall(r"(?:IoU|cost|L1|PSNR|SSIM|LPIPS|dB)\b[^.|\n]{0,40}?\d+\.\d+", prose) == []
    assert re.findall(r"\d+\.\d+ dB", prose) == []
