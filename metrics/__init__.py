"""Metrics: decomposition, editability, reconstruction, and intervals of their means."""
