"""Served model, former location: versions registered before it moved import it from here."""

from tracking.serving import ServedDecomposer

__all__ = ["ServedDecomposer"]
