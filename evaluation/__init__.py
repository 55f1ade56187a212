"""Evaluation of models: sets of designs, scores, panels, charts and the report page."""
