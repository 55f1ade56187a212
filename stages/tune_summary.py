"""What a study found, in a few lines for the terminal."""

from __future__ import annotations

import optuna
from optuna.trial import TrialState

from stages.tune_apply import yaml_lines
from stages.tune_study import ranked, values_of


def summary(study: optuna.Study) -> str:
    """What was found, for the terminal."""
    names, trials = list(study.user_attrs["objectives"]), ranked(study)
    complete = len(study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,)))
    states = [trial.state for trial in study.trials]
    rest = "".join(
        f", {states.count(state)} {state.name.lower()}"
        for state in (TrialState.PRUNED, TrialState.FAIL, TrialState.RUNNING)
        if state in states
    )
    if len(names) == 1:
        best = trials[0]
        head = f"tune: best {names[0]} {best.value:.4f} in trial {best.number} of {complete}{rest}"
        return f"{head}\n{yaml_lines(values_of(best)).rstrip()}"
    lines = [f"tune: {len(trials)} of {complete} trials are on the Pareto front{rest}"]
    for trial in trials:
        figures = ", ".join(f"{name} {value:.4f}" for name, value in zip(names, trial.values, strict=True))
        lines.append(f"trial {trial.number}: {figures}")
    return "\n".join(lines)
