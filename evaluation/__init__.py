"""What is reported of a model: the sets it is scored on, its figures, panels, charts, the page."""
