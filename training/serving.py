"""The served model's former place: versions that were registered before it moved import it from here."""

from tracking.serving import ServedDecomposer

__all__ = ["ServedDecomposer"]
