"""Names, states and parents of runs, in one SQLite store."""

import json
import os

import mlflow
import pytest

from config.params import parse_params
from config.paths import project_root
from layers.dataset.digest import digest
from tests.support.workspace import SMOKE
from tracking import pipeline
from tracking.run import report_metrics, stage_run, tracking_uri


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return tmp_path_factory.mktemp("project")


@pytest.fixture
def store(root, monkeypatch, request):
    """A client, and what opens a stage in an experiment of the test's own."""
    for name in [name for name in os.environ if name.startswith(("DVC_", "MLFLOW_TRACKING", "QIL_"))]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("DVC_ROOT", str(root))
    monkeypatch.chdir(root)
    experiment = request.node.name

    def open_stage(stage, inputs=None, resume_run_id=None, **blocks):
        raw = SMOKE | {"tracking": {"experiment": experiment, "system_metrics": False}}
        for name, changes in blocks.items():
            raw = raw | {name: raw[name] | changes}
        return stage_run(stage, parse_params(raw), inputs=inputs or {}, resume_run_id=resume_run_id)

    def found(condition=""):
        client = mlflow.MlflowClient(tracking_uri())
        folder = client.get_experiment_by_name(experiment)
        runs = client.search_runs([folder.experiment_id], condition, order_by=["attributes.start_time"])
        return [run for run in runs if run.data.tags["stage"] != "pipeline"], [
            run for run in runs if run.data.tags["stage"] == "pipeline"
        ]

    return open_stage, found


def test_the_store_follows_dvc_and_the_environment(monkeypatch, tmp_path):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setenv("DVC_ROOT", str(tmp_path))
    assert project_root() == tmp_path
    assert tracking_uri() == f"sqlite:///{tmp_path}/mlruns/mlflow.db"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:1")
    assert tracking_uri() == "http://127.0.0.1:1"


def test_digests_follow_content(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "x").write_text("1")
    first = digest(tmp_path / "a")
    (tmp_path / "a").rename(tmp_path / "b")
    assert digest(tmp_path / "b") == first, "the folder's name does not matter"
    (tmp_path / "b" / "x").write_text("2")
    assert digest(tmp_path / "b") != first


def test_numbers_of_a_report_have_its_dotted_keys_and_lists_are_tables():
    content = {"a": 1, "b": {"c": 0.5, "d": "text", "e": [1.0, 2.0]}, "dropped": {"a/b, 3 x 4": 2}, "flag": True}
    assert report_metrics("refine", content) == {"refine/a": 1.0, "refine/b.c": 0.5, "refine/dropped.a_b_ 3 x 4": 2.0}
    assert max(map(len, report_metrics("r", {"x" * 400: 1}))) == 250


def test_stages_of_one_pipeline_share_a_parent_that_has_their_numbers(store, tmp_path):
    open_stage, found = store
    for stage, value in (("train_vae", 0.25), ("refine", 0.5)):
        report = tmp_path / f"{stage}.json"
        report.write_text(json.dumps({"after": {"lpips": value}}))
        with open_stage(stage) as run:
            run.metrics({"val/lpips": 1.0}, 3)
            run.report(report)
    stages, (parent,) = found()
    assert [run.data.tags["stage"] for run in stages] == ["train_vae", "refine"]
    assert {run.data.tags["mlflow.parentRunId"] for run in stages} == {parent.info.run_id}
    assert parent.data.metrics == {"train_vae/after.lpips": 0.25, "refine/after.lpips": 0.5}
    assert stages[0].data.metrics == {"train_vae/after.lpips": 0.25, "val/lpips": 1.0}
    assert parent.data.params["train_vae.loss.kl"] == "1e-05" and parent.data.params["launcher"] == "python"
    assert not any(key.startswith("tune.") for key in parent.data.params)
    assert (
        parent.info.status == "FINISHED" and parent.info.run_name == f"pipeline-{parent.data.tags['pipeline.key'][:6]}"
    )


def test_other_parameters_code_or_experiments_are_another_pipeline(store, monkeypatch):
    open_stage, found = store
    with open_stage("evaluate"):
        pass
    with open_stage("evaluate", tune={"trials": 7}):
        pass
    assert len(found()[1]) == 1, "a study is no part of the pipeline"
    with open_stage("evaluate", evaluate={"steps": 3}):
        pass
    monkeypatch.setenv("DVC_EXP_NAME", "softer")
    with open_stage("evaluate"):
        pass
    monkeypatch.setattr(pipeline, "code_digest", lambda: "changed")
    with open_stage("evaluate"):
        pass
    stages, parents = found()
    assert len(stages) == 5 and len(parents) == 4
    assert [parent.info.run_name for parent in parents[2:]] == ["softer", "softer"]


def test_what_dvc_had_no_need_to_run_is_credited_to_the_run_that_made_it(store, tmp_path):
    open_stage, found = store
    buckets, vae = {"data/rgba_layers": "1"}, {"models/weights/vae": "2"}

    def go(stage, value, inputs, **changes):
        report = tmp_path / f"{stage}.json"
        report.write_text(json.dumps({"value": value}))
        with open_stage(stage, inputs, **changes) as run:
            run.report(report)
        return run.run_id

    first = [go("prepare_buckets", 1, {}), go("train_vae", 2, buckets), go("train_decompose", 3, buckets | vae)]
    for seed in (1, 2):
        go("train_decompose", 3 + seed, buckets | vae, train_decompose={"seed": seed})
    go("train_decompose", 9, {"models/weights/vae": "of unknown origin"}, train_decompose={"seed": 3})
    parents = found()[1]
    for parent, value in zip(parents[1:3], (4, 5), strict=True):
        tags = parent.data.tags
        assert [tags["reused.prepare_buckets"], tags["reused.train_vae"]] == first[:2]
        assert parent.data.metrics == {
            "prepare_buckets/value": 1,
            "train_vae/value": 2,
            "train_decompose/value": value,
        }
    for parent in (parents[0], parents[3]):
        assert not [key for key in parent.data.tags if key.startswith("reused.")]


def test_a_study_is_the_parent_of_its_trials(store, monkeypatch):
    open_stage, found = store
    with open_stage("tune") as study:
        monkeypatch.setenv("QIL_PARENT_RUN_ID", study.run_id)
        with open_stage("train_vae"):
            pass
    (_, trial), parents = found()
    assert trial.data.tags["mlflow.parentRunId"] == study.run_id and not parents


@pytest.mark.parametrize(("error", "status"), [(RuntimeError, "FAILED"), (KeyboardInterrupt, "KILLED")])
def test_how_a_stage_ends_is_how_its_pipeline_stands(store, error, status):
    open_stage, found = store
    with pytest.raises(error), open_stage("train_vae"):
        raise error
    (failed,), (parent,) = found()
    assert failed.info.status == parent.info.status == status
    with open_stage("refine"):
        assert found()[1][0].info.status == "RUNNING"
    assert found()[1][0].info.status == status, "one stage is still to be mended"
    with open_stage("train_vae"):
        pass
    assert found()[1][0].info.status == "FINISHED"


def test_what_was_killed_goes_on_or_is_closed(store):
    open_stage, found = store
    # Kept, because a context that is thrown away ends as one that failed.
    killed = [open_stage("train_vae"), open_stage("prepare_buckets")]
    left, lost = (context.__enter__().run_id for context in killed)
    with open_stage("train_vae", resume_run_id=left):
        pass
    with open_stage("prepare_buckets"):
        pass
    stages, (parent,) = found()
    states = {run.info.run_id: run.info.status for run in stages}
    assert (states.pop(left), states.pop(lost)) == ("FINISHED", "KILLED")
    assert list(states.values()) == ["FINISHED"] and parent.info.status == "FINISHED"


def test_a_run_that_goes_on_under_other_code_is_of_todays_pipeline(store, monkeypatch):
    open_stage, found = store
    with open_stage("prepare_buckets"):
        pass
    killed = open_stage("train_vae")
    left = killed.__enter__().run_id
    monkeypatch.setattr(pipeline, "code_digest", lambda: "changed")
    with open_stage("train_vae", resume_run_id=left):
        pass
    stages, (old, new) = found()
    assert [run.data.tags["mlflow.parentRunId"] for run in stages] == [old.info.run_id, new.info.run_id]
    assert (old.info.status, new.info.status) == ("FINISHED", "FINISHED")


def test_other_ranks_log_nothing(store):
    open_stage, found = store
    with open_stage("train_vae"):
        pass
    with stage_run("train_vae", parse_params(SMOKE), inputs={}, main_process=False) as run:
        run.metrics({"x": 1.0}, 1)
        assert run.run_id is None
    assert len(found()[0]) == 1
