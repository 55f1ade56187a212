"""Run an Optuna study over the loss weights and learning rates of one training stage.

    python -m stages.tune [--stage STAGE] [--trials N]          run N more trials; any number of workers at once
    python -m stages.tune [--stage STAGE] --report              draw the study's plots again
    python -m stages.tune [--stage STAGE] --confirm SEEDS       train the best trial again with other seeds
    python -m stages.tune --apply [STUDY] [--trial N]           write the best values into params.yaml
    python -m stages.tune --as-dvc-experiments K                queue the best K trials as DVC experiments

Each trial is a process in a folder of its own, so a crash fails one trial only and the pipeline's outputs stay as they
are. The first trial has today's params.yaml. At the end it and the best trial are trained again with other seeds
(experiments/study/confirm.py). The objectives are validation metrics of the stage, never the reweighted loss. The same
command continues the same study.
"""

from __future__ import annotations

import argparse
import sys

from config.errors import UserError
from config.params import Params
from config.tune import TUNED
from experiments.study.apply import apply_trial, choose, queue_experiments
from experiments.study.confirm import CONFIRMING
from experiments.study.plan import check_same, load_study, make_plan, ranked, run_id_of, study_name
from experiments.study.run import confirm_and_report, logged_params, report, run_study
from stages.cli import stage_command
from tracking.run import stage_run


def run(params: Params, arguments: argparse.Namespace) -> None:
    """Run the action of the flags; without one, run trials."""
    stage = arguments.stage or params.tune.stage
    if arguments.trials is not None and arguments.trials < 1:
        raise UserError(f"--trials: got {arguments.trials}, expected 1 or more")
    if arguments.trial is not None and arguments.apply is None:
        raise UserError("--trial: expected --apply beside it; the number of trials to run is --trials")
    if arguments.apply is not None:
        study = load_study(params, arguments.apply or study_name(params, stage))
        apply_trial(arguments.params, study, choose(study, arguments.trial))
    elif arguments.as_dvc_experiments is not None:
        if arguments.as_dvc_experiments < 1:
            raise UserError(f"--as-dvc-experiments: got {arguments.as_dvc_experiments}, expected 1 or more")
        study = load_study(params, study_name(params, stage))
        queue_experiments(study, ranked(study)[: arguments.as_dvc_experiments])
    elif arguments.report or arguments.confirm is not None:
        if arguments.confirm is not None and arguments.confirm < 1:
            raise UserError(f"--confirm: got {arguments.confirm}, expected 1 or more")
        study = load_study(params, study_name(params, stage))
        with stage_run("tune", logged_params(params, stage), inputs={}, resume_run_id=run_id_of(study)) as parent:
            if arguments.report:
                report(study, parent)
            else:
                study.set_user_attr(CONFIRMING, None)
                plan = make_plan(params, stage)
                check_same(study, plan)
                confirm_and_report(study, plan, parent, arguments.confirm)
    else:
        run_study(params, stage, arguments.trials or params.tune.trials)


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--stage", choices=TUNED, help="overrides tune.stage")
    parser.add_argument("--trials", type=int, metavar="N", help="overrides tune.trials")
    action = parser.add_mutually_exclusive_group()
    action.add_argument("--report", action="store_true", help="draw the plots of the study again, run nothing")
    action.add_argument(
        "--confirm",
        type=int,
        metavar="SEEDS",
        help="train the best trial again with this number of other seeds",
    )
    action.add_argument(
        "--apply", nargs="?", const="", metavar="STUDY", help="write a trial's values into the parameter file"
    )
    action.add_argument(
        "--as-dvc-experiments", type=int, metavar="K", help="queue the best K trials as DVC experiments"
    )
    parser.add_argument("--trial", type=int, metavar="N", help="trial for --apply (default: the best)")


def main(argv: list[str] | None = None) -> int:
    """Run the command; returns the exit code."""
    return stage_command(run, __doc__, argv, _add_arguments)


if __name__ == "__main__":
    sys.exit(main())
