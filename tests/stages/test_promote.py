"""Which version the alias names, and why not another."""

from pathlib import Path

import pytest

from stages.promote import main
from tests.servers import free_port
from tests.training.registered import FOLDER, enter_project, evaluate, refine, save_tiny
from training.versions import Registry


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
        "promote: version 2 is not better: alpha_iou 0.5000 against 0.6000 of version 1, worse by 0.1"
    )
    assert "equal" in promote(capsys, "--metric", "psnr", expect=1)
    assert Registry(params).holder("champion") == 1
    # Of a cost, less is better.
    assert promote(capsys, "--metric", "cost").endswith("cost 0.2500 against 0.3000 of version 1, better by 0.05")
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
    assert "better by 0.1" in promote(capsys, "--metric", "cost")


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
