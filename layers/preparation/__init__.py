"""Preparation of a source into a bucketed dataset: layers are cleaned, grouped, resized and written."""
