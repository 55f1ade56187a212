"""A source becomes a bucketed dataset: layers are cleaned, grouped, resized and written."""
