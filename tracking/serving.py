"""Served model: images in, layers out, as MLflow loads and serves a registered version (docs/registry.md)."""

from __future__ import annotations

import base64
import binascii
import logging
import threading
from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
import torch
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import INTERNAL_ERROR
from mlflow.pyfunc import PythonModel, PythonModelContext

from config.base import MOST_LAYERS
from config.errors import UserError
from inference.decomposer import Decomposer, GuidanceError
from inference.images import layers_of
from inference.offloading import OFFLOADS
from inference.restore import RoomError, check_room
from layers.imaging import to_srgb as image_files
from layers.imaging.codec import ImageError, encode_png
from models.precision import PRECISIONS, weights_dtype
from tracking.requests import RequestError, guard
from tracking.versions import open_weights

MAX_IMAGES = 8
MAX_BYTES = 32 * 2**20
MAX_PIXELS = 4096 * 4096
MAX_CAPTION = 4000
BOUNDS = {"layers": (1, MOST_LAYERS), "steps": (1, 200), "tries": (1, 64), "seed": (0, 2**63 - 1), "guidance": (0, 100)}
# Choices in a version's model_config for dtype and offloading of weights. Versions registered earlier have neither.
KEPT = {"precision": PRECISIONS, "offload": OFFLOADS}
USUAL = {"precision": "auto", "offload": "none"}
FORMATS = ("PNG", "JPEG")

logger = logging.getLogger(__name__)


class ConfigError(UserError):
    """The model_config of a version has an invalid value; the message is one sentence."""


def decode_image(text: str, name: str) -> np.ndarray:
    """Decode a base64 PNG or JPEG to ``(H, W, 4)`` uint8, rotated by its EXIF orientation as in ``stages.decompose``.

    Raises:
        RequestError: if it is not one, or above :data:`MAX_BYTES` or :data:`MAX_PIXELS`.
    """
    if not isinstance(text, str):
        raise RequestError(f"{name}: got {type(text).__name__}, expected a PNG or JPEG file in base64")
    if len(text) > MAX_BYTES * 4 // 3 + 4:
        raise RequestError(f"{name}: above {MAX_BYTES} bytes")
    try:
        data = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        raise RequestError(f"{name}: not base64; expected a PNG or JPEG file in base64") from None
    try:
        return image_files.decode_image(data, name, MAX_PIXELS, formats=FORMATS, min_side=1)
    except ImageError as error:
        raise RequestError(str(error)) from None


def checked(params: Mapping[str, Any]) -> dict[str, Any]:
    """Check the parameters of a request.

    Raises:
        RequestError: if one is out of bounds.
    """
    for name, (low, high) in BOUNDS.items():
        if name in params and (params[name] is None or not low <= params[name] <= high):
            raise RequestError(f"{name}: got {params[name]}, expected {low} to {high}")
    if len(params["caption"]) > MAX_CAPTION:
        raise RequestError(f"caption: got {len(params['caption'])} characters, expected at most {MAX_CAPTION}")
    return dict(params)


def kept(config: Mapping[str, Any]) -> dict[str, Any]:
    """Read ``precision`` and ``offload`` of a model_config, or their defaults.

    Raises:
        ConfigError: if a value is invalid.
    """
    chosen = {name: config.get(name, usual) for name, usual in USUAL.items()}
    for name, value in chosen.items():
        if value not in KEPT[name]:
            raise ConfigError(f"model_config: {name}: got {value!r}, expected one of {', '.join(KEPT[name])}")
    return chosen


class ServedDecomposer(PythonModel):
    """An MLflow model around a :class:`~inference.decomposer.Decomposer`; the signature is in tracking/registry.py."""

    def load_context(self, context: PythonModelContext) -> None:
        """Load the version's weights with the precision and offloading of its model_config.

        Raises:
            ConfigError: if the model_config is invalid.
            WeightsError: if the weights are not the registered ones.
        """
        guard(ServedDecomposer)
        config = context.model_config
        how = kept(config)
        folder = open_weights(config["weights"], config["md5"])
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        dtype = weights_dtype(how["precision"], device)
        self._model = Decomposer.from_pretrained(str(folder), device, dtype, how["offload"])
        self._one_at_a_time = threading.Lock()

    def predict(
        self, context: PythonModelContext, model_input: pd.DataFrame, params: dict[str, Any] | None = None
    ) -> list[dict[str, Any]]:
        """Decompose the images of a request (inference/images.py).

        Args:
            context: unused.
            model_input: table with a column ``picture`` of base64 PNG or JPEG files.
            params: ``layers``, ``steps``, ``tries``, ``seed``, ``caption``, ``guidance``; missing ones are taken
                from the signature.

        Returns:
            For each image ``width``, ``height`` and ``layers``: base64 PNG files of its size, bottom to top.

        Raises:
            RequestError: if the request is invalid.
            MlflowException: if the model fails.
        """
        asked = checked(params or {})
        try:
            self._model.check_guidance(asked.get("guidance", 1.0))
        except GuidanceError as error:
            raise RequestError(str(error)) from None
        # A dictionary of lists, MLflow's form "inputs", arrives as one row with the list.
        rows = ([cell] if isinstance(cell, str) or not np.iterable(cell) else cell for cell in model_input["picture"])
        images = [text for row in rows for text in row]
        if not 1 <= len(images) <= MAX_IMAGES:
            raise RequestError(f"got {len(images)} images, expected 1 to {MAX_IMAGES}")
        decoded = [decode_image(text, f"image {index}") for index, text in enumerate(images)]
        try:
            check_room([image.shape[:2] for image in decoded], asked["layers"])
        except RoomError as error:
            raise RequestError(str(error)) from None
        try:
            return [self._decompose(image, **asked) for image in decoded]
        except Exception as error:
            # MLflow would send the traceback to the client, as if the request were invalid.
            logger.exception("a request failed")
            raise MlflowException(f"the model failed with {type(error).__name__}", INTERNAL_ERROR) from None

    # Versions registered before candidates or guidance existed lack them in their signature.
    def _decompose(
        self,
        image: np.ndarray,
        layers: int,
        caption: str,
        *,
        steps: int,
        seed: int,
        tries: int = 1,
        guidance: float = 1.0,
    ) -> dict[str, Any]:
        height, width = image.shape[:2]
        effort = {"steps": steps, "tries": tries, "seed": seed, "guidance": guidance}
        # Requests run in separate threads; in parallel they would need the memory of all.
        with self._one_at_a_time:
            (stack,) = layers_of(self._model, [image], layers, captions=[caption], **effort)
        files = [base64.b64encode(encode_png(layer)).decode() for layer in stack]
        return {"width": width, "height": height, "layers": files}
