"""MLflow runs, the model registry and the served model. MLflow is imported here only."""

import os

# Here, because MLflow reads some of it while it is imported, and every module of ours that imports it is in here.
for _name, _value in {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_LOGGING_LEVEL": "WARNING",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "GIT_PYTHON_REFRESH": "quiet",
    # MLflow's 7 retries of up to 120 s each would hold up training for minutes; what fails is kept and sent later.
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "20",
}.items():
    os.environ.setdefault(_name, _value)
