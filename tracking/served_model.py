"""Loader script that MLflow stores for a registered model ("models from code"): it imports the project's code.

MLflow copies this file to every version and runs the copy. The model's code is imported from the project and not copied
into versions: the working folder is in the project, or DVC_ROOT names it.
"""

import os
import sys
from pathlib import Path

from mlflow.models import set_model

here = Path.cwd()
roots = [Path(os.environ["DVC_ROOT"])] if "DVC_ROOT" in os.environ else [here, *here.parents]
# Last in the path: an already importable project has precedence.
sys.path += [str(root) for root in roots if (root / "tracking" / "serving.py").is_file()][:1]

try:
    from tracking.serving import ServedDecomposer
except ModuleNotFoundError as error:
    if error.name not in ("tracking", "tracking.serving"):
        raise
    raise ModuleNotFoundError(
        f"the model's code is in its project, and {here} is outside of it: start in the project or set DVC_ROOT"
    ) from None

set_model(ServedDecomposer())
