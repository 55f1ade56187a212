"""Decomposition metric (LayerD protocol): layer pairs, alignment with merges, scores."""
