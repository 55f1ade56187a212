"""The best of several trials and today's parameters, trained again with other seeds."""

import contextlib

import optuna
import pytest

from config.params import load_params
from experiments.study.confirm import CONFIRMED, CONFIRMING, Confirmation, confirm, read_confirmation, verdict
from experiments.study.plan import is_today, make_plan
from experiments.study.storage import signature
from experiments.study.summary import importances, summary, table
from experiments.study.trial import TRIALS
from tests.experiments.study.studies import params_file, stub_workspace, study
from tests.support.workspace import run, stage

SQLITE = "sqlite:///mlruns/optuna.db"


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return stub_workspace(tmp_path_factory.mktemp("confirm"))


def tuned(root, params, *arguments, **more):
    return run(stage("tune", "--params", params.name, *arguments), root, **more).stdout


def make_plan_of(root, params):
    with contextlib.chdir(root):
        return make_plan(load_params(params), "train_vae")


def test_the_best_and_todays_are_trained_again(root):
    params = params_file(root, "again", pruner=None, confirm_seeds=2)
    said = tuned(root, params, "--trials", "3")
    found = study(root, SQLITE, "again")
    kept = Confirmation(**found.user_attrs[CONFIRMED])
    best = found.best_trial
    assert kept.trial == best.number and kept.seeds == [1, 2] and not is_today(found, best)
    # The stub adds a thousandth a seed to what the weights give.
    first = found.trials[0].value
    assert [row["psnr_white"] for row in kept.best] == pytest.approx([best.value + 0.001, best.value + 0.002])
    assert [row["psnr_white"] for row in kept.today] == pytest.approx([first + 0.001, first + 0.002])
    assert f"better with 2 of 2 other seeds, {best.value - found.trials[0].value:+.4f} on average" in said
    # What the stub calls LPIPS is the searched weight itself.
    weight = best.params["train_vae.loss.kl"] - 1.0e-5
    assert kept.changes() == {"lpips": pytest.approx(weight), "psnr_white": pytest.approx(best.value - first)}
    assert (f"other figures change by: lpips {weight:+.4f}" in said) == (abs(weight) >= 5e-5)
    folder = root / TRIALS / "train_vae-again"
    expected = {"best_seed_1", "best_seed_2", "today_seed_1", "today_seed_2"}
    assert {path.name.rpartition("_")[0] for path in folder.glob("*_seed_*")} == expected
    # It is kept: the report says it again without training.
    assert said.endswith(tuned(root, params, "--report"))


def test_a_better_trial_later_is_trained_again_too(root):
    params = params_file(root, "later", pruner=None, confirm_seeds=1)
    tuned(root, params, "--trials", "2")
    first = study(root, SQLITE, "later")
    assert read_confirmation(first).trial == first.best_trial.number
    better = optuna.trial.create_trial(
        params=first.best_trial.params,
        distributions=first.best_trial.distributions,
        user_attrs=first.best_trial.user_attrs,
        value=99.0,
    )
    first.add_trial(better)
    assert read_confirmation(study(root, SQLITE, "later")) is None
    said = tuned(root, params, "--trials", "1")
    assert read_confirmation(study(root, SQLITE, "later")).trial == 2 and "best again, seed 1" in said


def test_a_training_that_fails_is_said_and_the_study_is_reported(root):
    params = params_file(root, "fails", pruner=None, confirm_seeds=1)
    said = tuned(root, params, "--trials", "3", STUB_FAIL_AGAIN="1")
    assert "tune: with other seeds: ended with code 1: error: no other seed" in said
    assert "not trained again with other seeds" in said
    assert CONFIRMED not in study(root, SQLITE, "fails").user_attrs


def test_nothing_is_trained_again_where_todays_parameters_are_best(root):
    params = params_file(root, "today", pruner=None, confirm_seeds=2)
    said = tuned(root, params, "--trials", "1")
    assert "today's parameters are the best of these trials: nothing to apply" in said
    assert "next:" not in said and not list((root / TRIALS / "train_vae-today").glob("*_seed_*"))


def test_the_summary_has_a_table_importances_and_what_to_do_next(root):
    params = params_file(root, "table", pruner=None)
    said = tuned(root, params, "--trials", "4").splitlines()
    found = study(root, SQLITE, "table")
    assert set(said[-len(summary(found, TRIALS).splitlines()) :]) >= set(table(found))
    lines = table(found)
    assert lines[0].split()[:2] == ["trial", "psnr_white"] and len(lines) == 5
    assert lines[1].split()[0] == str(found.best_trial.number)
    assert sum(line.endswith("today's") for line in lines) == 1
    assert any(line.startswith("importance: ") for line in said)
    assert sum(importances(found).values()) == pytest.approx(1.0)
    assert any("--apply train_vae-table" in line for line in said) and any("plots.html" in line for line in said)


@pytest.mark.parametrize(
    ("gains", "words"),
    [
        ([0.1, 0.3], "better with 2 of 2 other seeds, +0.2000 on average: the gain holds"),
        ([0.3, -0.1], "better with 1 of 2 other seeds, +0.1000 on average: the gain is not sure"),
        ([0.1, -0.3], "better with 1 of 2 other seeds, -0.1000 on average: the gain does not hold"),
    ],
)
def test_the_verdict(gains, words):
    assert verdict(gains) == words


def test_gains_know_which_way_is_better_and_changes_take_what_all_have():
    found = Confirmation(1, [1], [{"a": 0.2, "b": 1.0, "loss": 9.0}], [{"a": 0.3, "c": 1.0, "loss": 1.0}])
    assert found.gains("a", largest=False) == pytest.approx([0.1])
    assert found.gains("a", largest=True) == pytest.approx([-0.1])
    assert found.changes() == {"a": pytest.approx(-0.1)}


def test_more_seeds_are_added_and_todays_are_those_of_the_studys_beginning(root):
    params = params_file(root, "more", pruner=None, confirm_seeds=1)
    tuned(root, params, "--trials", "3")
    begun = study(root, SQLITE, "more").trials[0].value
    tuned(root, params, "--apply", "train_vae-more")
    said = tuned(root, params, "--confirm", "2")
    assert "seed 1:" not in said and "best again, seed 2" in said
    kept = Confirmation(**study(root, SQLITE, "more").user_attrs[CONFIRMED])
    assert kept.seeds == [1, 2]
    assert [row["psnr_white"] for row in kept.today] == pytest.approx([begun + 0.001, begun + 0.002])


def test_a_study_that_began_without_confirmations_goes_on(root):
    params = params_file(root, "old", pruner=None, confirm_seeds=1)
    tuned(root, params, "--trials", "1")
    found = study(root, SQLITE, "old")
    found.set_user_attr("today", None)
    assert is_today(found, found.trials[0])


def test_what_another_worker_is_at_is_left_to_it(root, capsys):
    params = params_file(root, "claimed", pruner=None, confirm_seeds=0)
    tuned(root, params, "--trials", "3")
    found = study(root, SQLITE, "claimed")
    _, _, began = signature()
    found.set_user_attr(CONFIRMING, {"trial": found.best_trial.number, "worker": ["another machine", 1, began]})
    confirm(found, make_plan_of(root, params), None, 1)
    assert "another worker trains trial" in capsys.readouterr().out
    assert CONFIRMED not in found.user_attrs
