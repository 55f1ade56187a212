"""Pretraining of the weights that ship, by the project's own stages."""
