"""Request checks for MLflow's scoring server: invalid requests are answered with one sentence.

The server alone ignores unknown parameters and columns, and answers some invalid requests with a traceback.
"""

from __future__ import annotations

import functools
import json
import logging
from collections.abc import Mapping
from typing import Any

from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import INTERNAL_ERROR, INVALID_PARAMETER_VALUE
from mlflow.pyfunc import PyFuncModel, scoring_server
from mlflow.types import ParamSchema, ParamSpec

FORMS = ("dataframe_records", "dataframe_split", "inputs", "instances")
COLUMN, PARAMS = "picture", "params"
LONGEST = 200  # characters of a sentence of MLflow

logger = logging.getLogger(__name__)


class RequestError(MlflowException):
    """Invalid request; HTTP 400 with one sentence.

    The message is fixed, because the scoring server prepends the request's data (a base64 image) to every message.
    """

    def __init__(self, sentence: str) -> None:
        super().__init__(sentence, error_code=INVALID_PARAMETER_VALUE)

    @property
    def message(self) -> str:
        """Fixed sentence; assignments are ignored."""
        return str(self.args[0])

    @message.setter
    def message(self, value: str) -> None:
        del value


def guard(kind: type) -> None:
    """Make the scoring server of this process check requests for a model of class ``kind`` before reading them."""
    inner = scoring_server.invocations
    if hasattr(inner, "__wrapped__"):
        return

    @functools.wraps(inner)
    def invocations(data: bytes, content_type: str | None, model: PyFuncModel, input_schema: Any) -> Any:
        if not isinstance(model.unwrap_python_model(), kind):
            return inner(data, content_type, model, input_schema)
        try:
            if (content_type or "").startswith(scoring_server.CONTENT_TYPE_JSON):
                data = read_request(data, model.metadata.get_params_schema())
            return inner(data, content_type or "none", model, input_schema)
        except RequestError:
            raise
        except MlflowException as error:
            said = " ".join(error.message.removeprefix("Invalid input. ").rpartition("Error: ")[2].split()).partition(
                ". "
            )[0][:LONGEST]
            if error.get_http_status_code() < 500:
                raise RequestError(f"the request cannot be read: {said}") from None
            raise MlflowException(said, INTERNAL_ERROR) from None
        except Exception as error:
            logger.exception("a request failed")
            raise MlflowException(f"the server failed with {type(error).__name__}", INTERNAL_ERROR) from None

    scoring_server.invocations = invocations


def read_request(body: bytes, schema: ParamSchema) -> dict[str, Any]:
    """Parse the JSON of a request and check that all its keys are known.

    Raises:
        RequestError: naming the unknown key and the known ones.
    """
    try:
        said = json.loads(body)
    except (ValueError, RecursionError):
        said = None
    forms = ", ".join(FORMS)
    if not isinstance(said, dict) or len(said.keys() & set(FORMS)) != 1:
        raise RequestError(f"the request: expected a JSON object with one of {forms}")
    _refuse_unknown("the request", said, (*FORMS, PARAMS))
    for form in said.keys() & set(FORMS):
        _refuse_unknown(form, _columns(said[form], form), (COLUMN,))
    params = said.get(PARAMS) or {}
    if not isinstance(params, dict):
        raise RequestError(f"{PARAMS}: got {type(params).__name__}, expected an object")
    _refuse_unknown(PARAMS, params, [spec.name for spec in schema.params])
    for spec in schema.params:
        if spec.name in params and not _fits(params[spec.name], spec):
            raise RequestError(f"{spec.name}: got {params[spec.name]!r:.40}, expected a {spec.dtype.name}")
    return said


def _refuse_unknown(where: str, given: Any, known: Any) -> None:
    unknown = [name for name in given if name not in known]
    if unknown:
        names = ", ".join(str(name)[:40] for name in unknown[:3])
        raise RequestError(f"{where}: unknown {names}; expected {', '.join(known)}")


def _columns(table: Any, form: str) -> list[Any]:
    """Names of columns in any of MLflow's forms; MLflow itself refuses data that is no table."""
    if form == "dataframe_split":
        columns = table.get("columns") if isinstance(table, Mapping) else None
        return columns if isinstance(columns, list) else []
    rows = table if isinstance(table, list) else [table]
    return [name for row in rows if isinstance(row, Mapping) for name in row]


def _fits(value: Any, spec: ParamSpec) -> bool:
    try:
        return ParamSpec.validate_param_spec(value, spec) is not None
    except MlflowException:
        return False
