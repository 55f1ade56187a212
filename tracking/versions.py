"""Model versions in the registry: their weights, evaluations and aliases.

A version is identified by the md5 of its weights. Evaluations are metrics of the version, each with the md5 and the
split of its data, because scores on different images are not comparable.
"""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
from mlflow.entities.model_registry import ModelVersion
from mlflow.exceptions import MlflowException

from config.errors import UserError
from config.params import Params
from config.paths import project_root
from layers.dataset.digest import digest
from tracking.run import tracking_uri
from tracking.store import open_store, without_password

SOURCE = "models:/"
# A missing server would be retried for four minutes; a progress bar for a file of some kilobytes is useless.
PATIENCE = {
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "30",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
}


class RegistryError(UserError):
    """The registry cannot answer a request; the message is one sentence."""


class WeightsError(UserError):
    """The registered weights of a version are missing; the message is one sentence."""


@dataclass(frozen=True)
class Score:
    """Metric of evaluate by which versions are compared.

    Attributes:
        path: keys of the metric in ``evaluate.json``.
        higher: whether higher is better.
    """

    path: tuple[str | int, ...]
    higher: bool


_LEVEL = ("decomposition", "model", 0)
SCORES = {
    "rgb_l1": Score((*_LEVEL, "rgb_l1"), False),
    "alpha_iou": Score((*_LEVEL, "alpha_iou"), True),
    "cost": Score((*_LEVEL, "cost"), False),
    "psnr": Score(("recomposition", "psnr_white"), True),
    "ssim": Score(("recomposition", "ssim_white"), True),
    "lpips": Score(("recomposition", "lpips_white"), False),
    "better_than_nothing": Score(("better_than_nothing",), True),
    "seconds_per_picture": Score(("seconds_per_picture",), False),
}


@dataclass(frozen=True)
class Evaluation:
    """Scores of a version on one dataset and split.

    Attributes:
        data_md5: digest of the bucketed dataset.
        split: split of the dataset.
        scores: scores by the names in :data:`SCORES`.
        runs: id of the run that measured each score.
        when: time in milliseconds since 1970.
    """

    data_md5: str
    split: str
    scores: dict[str, float]
    runs: dict[str, str]
    when: int


@dataclass(frozen=True)
class Version:
    """Registered model version.

    Attributes:
        number: number of the version, from 1.
        path: path of the weights, relative to the project's root.
        md5: md5 of the weights.
        evaluations: newest first; one for each dataset and split.
    """

    number: int
    path: str
    md5: str
    evaluations: tuple[Evaluation, ...]


def model_name(params: Params) -> str:
    """Name of the registered model, derived from the experiment's."""
    return f"{params.tracking.experiment}-decomposer"


def scores_of(report: Mapping[str, Any]) -> dict[str, float]:
    """Scores in ``evaluate.json`` by which versions are compared; missing or non-finite ones are left out."""
    found = {}
    for name, score in SCORES.items():
        value: Any = report
        for key in score.path:
            value = value[key]
        if value is not None and np.isfinite(value):
            found[name] = float(value)
    return found


def open_weights(path: str, md5: str) -> Path:
    """Folder of a version's weights, checked to contain the registered ones.

    Args:
        path: path relative to the project's root.
        md5: md5 of the registered weights.

    Raises:
        WeightsError: if the folder is missing or has other weights.
    """
    folder = project_root() / path
    try:
        found = digest(folder)
    except FileNotFoundError:
        raise WeightsError(f"no weights at {folder}; expected md5 {md5}, which dvc pull or dvc checkout gets") from None
    if found != md5:
        raise WeightsError(
            f"{folder} holds weights of md5 {found}, this version is of md5 {md5}, which dvc pull or dvc checkout "
            "gets at the commit whose dvc.lock names it"
        )
    return folder


def reason_of(error: Exception) -> str:
    """Reason of an error in one line; for a server that does not answer, only the request."""
    words = " ".join(str(error).split())
    request, failed, _ = words.partition(" failed with exception ")
    return f"{request.partition('?')[0]} failed" if failed else words[:300]


@contextlib.contextmanager
def impatient() -> Iterator[None]:
    """Retry a server that does not answer once instead of for minutes, unless the environment sets other limits."""
    added = {key: value for key, value in PATIENCE.items() if key not in os.environ}
    os.environ.update(added)
    try:
        yield
    finally:
        for key in added:
            os.environ.pop(key, None)


@contextlib.contextmanager
def _asked() -> Iterator[None]:
    try:
        with impatient():
            yield
    except MlflowException as error:
        raise RegistryError(f"the model registry in {without_password(tracking_uri())}: {reason_of(error)}") from None


class Registry:
    """Versions of a project's model, in the store of its runs.

    Args:
        params: all parameters.

    Raises:
        RegistryError: if the store does not answer.
    """

    def __init__(self, params: Params) -> None:
        uri = tracking_uri()
        self.name = model_name(params)
        self._client: mlflow.MlflowClient | None = None
        # Opening a missing database would create it.
        if not uri.startswith("sqlite:") or Path(uri.removeprefix("sqlite:///")).is_file():
            with _asked():
                open_store()
                self._client = mlflow.MlflowClient()

    def versions(self) -> list[Version]:
        """All versions, newest first."""
        if self._client is None:
            return []
        with _asked():
            found, token = [], None
            while token != "":
                page = self._client.search_model_versions(f"name = '{self.name}'", page_token=token)
                # Versions registered by hand under this name have no known weights.
                found += [version for version in page if "weights.md5" in version.tags]
                token = page.token or ""
            return sorted(map(self._version, found), key=lambda version: -version.number)

    def holder(self, alias: str) -> int | None:
        """Number of the version with an alias; ``None`` if there is none."""
        if self._client is None:
            return None
        with _asked():
            aliases = [model.aliases for model in self._client.search_registered_models(f"name = '{self.name}'")]
        number = aliases[0].get(alias) if aliases else None
        return None if number is None else int(number)

    def config(self, number: int) -> dict[str, Any]:
        """Get the model_config that a version was registered with.

        Raises:
            RegistryError: if the store does not answer, or has lost the version's files.
        """
        try:
            with impatient():
                flavors = mlflow.models.get_model_info(f"models:/{self.name}/{number}").flavors
        except (MlflowException, OSError) as error:
            raise RegistryError(
                f"version {number} of {self.name}: {without_password(tracking_uri())} does not give its files "
                f"({reason_of(error)}); expected them where it was registered, such as in mlruns/artifacts"
            ) from None
        return flavors["python_function"].get("config") or {}

    def artifact(self, run_id: str, name: str) -> str | None:
        """Text of a file that a run has logged; ``None`` if there is no file of this name.

        Raises:
            RegistryError: if the store does not answer, or cannot return the file.
        """
        with _asked():
            if name not in {entry.path for entry in self._client.list_artifacts(run_id)}:
                return None
            with tempfile.TemporaryDirectory() as folder:
                try:
                    return Path(self._client.download_artifacts(run_id, name, folder)).read_text(encoding="utf-8")
                except OSError as error:
                    raise RegistryError(f"{name} of run {run_id} cannot be read: {reason_of(error)}") from None

    def set_alias(self, alias: str, number: int) -> None:
        """Assign an alias to a version."""
        with _asked():
            self._client.set_registered_model_alias(self.name, alias, str(number))

    def _version(self, found: ModelVersion) -> Version:
        logged = self._client.get_logged_model(logged_model_id(found))
        groups: dict[tuple[str, str], list[Any]] = defaultdict(list)
        for metric in logged.metrics or []:
            if metric.dataset_digest and metric.key in SCORES:
                groups[metric.dataset_digest, metric.dataset_name].append(metric)
        evaluations = []
        for (data_md5, split), metrics in groups.items():
            # For scores measured again, the last one counts.
            last = {metric.key: metric for metric in sorted(metrics, key=lambda metric: metric.timestamp)}
            scores, runs = ({key: getattr(m, what) for key, m in last.items()} for what in ("value", "run_id"))
            when = max(metric.timestamp for metric in metrics)
            evaluations.append(Evaluation(data_md5, split, scores, runs, when))
        evaluations.sort(key=lambda evaluation: -evaluation.when)
        return Version(int(found.version), found.tags["weights.path"], found.tags["weights.md5"], tuple(evaluations))


def logged_model_id(version: ModelVersion) -> str:
    """Id of a version's logged model, which has its metrics."""
    return version.source.removeprefix(SOURCE)
