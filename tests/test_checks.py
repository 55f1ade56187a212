"""What is checked before a commit and on a push is what `make lint` and .ci/run check, and nothing else."""

import os

import yaml

from tests.support.imports import ROOT


def test_the_hooks_are_those_of_make_lint():
    makefile = (ROOT / "Makefile").read_text()
    lint = makefile.split("\nlint: ")[1].split("\n\n")[0].splitlines()[1:]
    (local,) = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"]
    assert local["repo"] == "local" and {hook["language"] for hook in local["hooks"]} == {"system"}
    commands = [
        line.strip().replace("$(BIN)", ".venv/bin").removeprefix("git ls-files -z | xargs -0 ") for line in lint
    ]
    assert [hook["entry"] for hook in local["hooks"]] == commands


def test_the_workflow_runs_what_anybody_can_run():
    workflow = yaml.safe_load((ROOT / ".github" / "workflows" / "ci.yml").read_text())
    (job,) = workflow["jobs"].values()
    assert [step["run"] for step in job["steps"] if "run" in step] == [".ci/run"]
    assert os.access(ROOT / ".ci" / "run", os.X_OK)
