import optuna
import pytest

from stages.tune import suggest, with_values
from training.params import ParamsError, SearchRange


def test_values_are_set_by_their_dotted_paths():
    raw = {"a": {"b": {"c": 1}, "d": 2}}
    assert with_values(raw, {"a.b.c": 5, "a.d": 6}) == {"a": {"b": {"c": 5}, "d": 6}}
    assert raw["a"]["b"]["c"] == 1


@pytest.mark.parametrize("path", ["a.x", "x", "a.b.c.d"])
def test_a_path_that_does_not_exist_is_named(path):
    with pytest.raises(ParamsError, match=f"tune: {path}: no such parameter"):
        with_values({"a": {"b": {"c": 1}}}, {path: 1})


def test_ranges_and_choices_are_respected():
    space = {
        "rate": SearchRange(low=1.0e-4, high=1.0e-2, log=True),
        "kind": SearchRange(choices=["cosine", "constant"]),
    }
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    for _ in range(20):
        values = suggest(study.ask(), space)
        assert 1.0e-4 <= values["rate"] <= 1.0e-2 and values["kind"] in ("cosine", "constant")
