"""Which version the alias names, and why not another."""

import re
from pathlib import Path

import pytest

from stages.promote import main
from tests.support.servers import free_port
from tests.tracking.registered import FOLDER, enter_project, evaluate, refine, sample_rows, save_tiny
from tracking.versions import Registry


@pytest.fixture
def params(tmp_path, bucketed_root, monkeypatch):
    return enter_project(tmp_path / "project", bucketed_root, monkeypatch)


def another(params, seed, **scores):
    """The next version: other weights, evaluated."""
    save_tiny(Path(FOLDER), seed)
    evaluate(params, **scores)


def promote(capsys, *arguments, expect=0):
    capsys.readouterr()
    assert main(list(arguments)) == expect
    out, err = capsys.readouterr()
    assert "Downloading" not in err
    line = (out if expect == 0 else err).strip().splitlines()[-1]
    return line


def test_only_a_better_version_takes_the_alias(params, capsys):
    evaluate(params, alpha_iou=0.6, cost=0.3)
    assert promote(capsys, "--metric", "alpha_iou") == (
        "promote: version 1 of smoke-decomposer is champion: the first; alpha_iou 0.6000"
    )
    assert promote(capsys, "--metric", "alpha_iou") == "promote: version 1 of smoke-decomposer is champion already"
    another(params, 2, alpha_iou=0.5, cost=0.25)
    assert promote(capsys, "--metric", "alpha_iou", expect=1) == (
        "promote: version 2 is not better: alpha_iou 0.5000 against 0.6000 of version 1: gain -0.1, "
        "95 % paired bootstrap interval -0.1 to -0.1, n = 6, not above 0"
    )
    assert "gain +0, 95 % paired bootstrap interval +0 to +0, n = 6" in promote(capsys, "--metric", "psnr", expect=1)
    assert Registry(params).holder("champion") == 1
    # Of a cost, less is better.
    assert promote(capsys, "--metric", "cost").endswith(
        "cost 0.2500 against 0.3000 of version 1: gain +0.05, 95 % paired bootstrap interval +0.05 to +0.05, n = 6"
    )
    assert Registry(params).holder("champion") == 2
    assert "version 1 of smoke-decomposer is champion" in promote(capsys, "--metric", "alpha_iou", "--version", "1")
    # Aliases are apart, and the newest may not be evaluated yet.
    save_tiny(Path(FOLDER), 3)
    refine(params)
    assert "version 2 of smoke-decomposer is staging" in promote(capsys, "--metric", "cost", "--alias", "staging")
    assert (Registry(params).holder("champion"), Registry(params).holder("staging")) == (1, 2)
    line = promote(capsys, "--metric", "cost", "--version", "3", expect=2)
    assert line == "error: version 3 of smoke-decomposer is not evaluated; stage evaluate does it"
    line = promote(capsys, "--metric", "cost", "--version", "9", expect=2)
    assert line == "error: smoke-decomposer has no version 9; it has 1, 2, 3"


def test_other_data_cannot_be_compared(params, capsys):
    evaluate(params)
    promote(capsys, "--metric", "cost")
    other = params.model_copy(update={"evaluate": params.evaluate.model_copy(update={"split": "train"})})
    another(other, 2, cost=0.1)
    line = promote(capsys, "--metric", "cost", expect=2)
    assert line.startswith("error: version 1 is not evaluated on the data of version 2 (md5 ")
    assert line.endswith("split train); check its weights out and run stage evaluate")
    # Evaluated there too, it can.
    save_tiny(Path(FOLDER), 1)
    evaluate(other, cost=0.2)
    assert "gain +0.1, " in promote(capsys, "--metric", "cost")


def test_the_newest_images_that_both_were_evaluated_on_are_compared(params, capsys):
    evaluate(params, cost=0.3)
    promote(capsys, "--metric", "cost")
    another(params, 2, cost=0.1)
    other = params.model_copy(update={"evaluate": params.evaluate.model_copy(update={"split": "train"})})
    evaluate(other, cost=0.9)
    assert "gain +0.2, " in promote(capsys, "--metric", "cost"), (
        "not the newest evaluation, which one of them has alone"
    )


def interval_of(line):
    found = re.search(r"gain (\S+), 95 % paired bootstrap interval (\S+) to (\S+), n = (\d+)", line)
    return [float(value) for value in found.groups()]


# Against 0.3 of each image: on average lower by 0.01, hence better, by more and less than chance.
ALIKE = [-0.012, -0.008, -0.011, -0.009, -0.013, -0.007]
TORN = [-0.3, 0.28, -0.25, 0.26, -0.31, 0.26]


@pytest.mark.parametrize(("spread", "code"), [(ALIKE, 0), (TORN, 1)])
def test_a_gain_counts_only_if_its_interval_is_above_nought(params, capsys, spread, code):
    evaluate(params, samples=sample_rows([0.0] * 6), cost=0.3)
    promote(capsys, "--metric", "cost")
    another(params, 2, samples=sample_rows(spread), cost=0.29)
    line = promote(capsys, "--metric", "cost", expect=code)
    assert "cost 0.2900 against 0.3000 of version 1" in line
    mean, low, high, count = interval_of(line)
    assert mean == pytest.approx(0.01) and low < 0.01 < high and count == 6
    assert (low > 0.0) == (code == 0) and line.endswith("not above 0") == (code == 1)
    assert Registry(params).holder("champion") == 2 - code


def test_images_are_paired_by_their_ids_not_their_order(params, capsys):
    """Unpaired, the images differ far more from each other than the versions do."""
    far = [-0.2, -0.1, 0.0, 0.1, 0.2, 0.3]
    evaluate(params, samples=sample_rows(far), alpha_iou=0.6)
    promote(capsys, "--metric", "alpha_iou")
    better = sample_rows([value + 0.01 for value in far])
    another(params, 2, samples=better[::-1], alpha_iou=0.61)
    assert interval_of(promote(capsys, "--metric", "alpha_iou")) == [0.01, 0.01, 0.01, 6]


def test_other_images_cannot_be_compared(params, capsys):
    evaluate(params, samples=sample_rows([0.0] * 6))
    promote(capsys, "--metric", "cost")
    another(params, 2, samples=sample_rows([-0.1] * 5), cost=0.2)
    assert promote(capsys, "--metric", "cost", expect=2) == (
        "error: the images are not the same, 5 against 6; only one of the two evaluations has image5; "
        "run stage evaluate on the same ones"
    )
    evaluate(params, samples=sample_rows([-0.1] * 4), cost=0.2)
    save_tiny(Path(FOLDER), 1)
    evaluate(params, samples=sample_rows([0.0] * 4))
    assert promote(capsys, "--metric", "cost", "--version", "2", expect=2) == (
        "error: an interval needs 5 images; the evaluations have 4"
    )
    assert Registry(params).holder("champion") == 1


def test_evaluations_without_scores_of_each_image_are_named(params, capsys):
    evaluate(params, samples=())
    assert "is champion: the first" in promote(capsys, "--metric", "cost"), "nothing to compare with"
    another(params, 2, cost=0.1)
    line = promote(capsys, "--metric", "cost", expect=2)
    assert line.startswith(
        "error: the evaluation of version 1 has no scores of each image (evaluate_samples.csv of run"
    )
    assert line.endswith("); check its weights out and run stage evaluate")
    # Evaluated again, it has them: the last evaluation stands.
    save_tiny(Path(FOLDER), 1)
    evaluate(params)
    assert "gain +0.2" in promote(capsys, "--metric", "cost", "--version", "2")
    few = [{name: row[name] for name in ("id", "cost", "alpha_iou")} for row in sample_rows()]
    another(params, 3, samples=few, cost=0.05)
    line = promote(capsys, "--metric", "psnr", expect=2)
    assert line.startswith("error: evaluate_samples.csv of version 3 (run ")
    assert line.endswith(") has no psnr; it has alpha_iou, cost")
    broken = sample_rows()
    broken[1]["cost"] = ""
    another(params, 4, samples=broken, cost=0.05)
    assert promote(capsys, "--metric", "cost", expect=2).endswith(") has no cost of image image1")


def test_where_there_is_nothing_to_promote(params, capsys, monkeypatch):
    nothing = "error: no version of smoke-decomposer is registered; stages refine and evaluate register one"
    assert promote(capsys, "--metric", "cost", expect=2) == nothing
    assert not Path("mlruns/mlflow.db").exists(), "looking makes no store"
    refine(params)
    assert promote(capsys, "--metric", "cost", expect=2) == (
        "error: none of the 1 versions of smoke-decomposer is evaluated; stage evaluate does it"
    )
    with pytest.raises(SystemExit) as ended:
        main(["--metric", "beauty"])
    assert ended.value.code == 2
    evaluate(params)
    assert promote(capsys, "--metric", "cost", "--alias", "no/alias", expect=2).startswith("error: the model registry")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{free_port()}")
    assert promote(capsys, "--metric", "cost", expect=2).endswith("/api/2.0/mlflow/model-versions/search failed")
