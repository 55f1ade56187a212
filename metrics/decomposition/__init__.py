"""The decomposition metric (LayerD protocol): layer pairs, alignment with merges, scores."""
