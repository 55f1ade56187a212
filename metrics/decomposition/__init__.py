"""The decomposition metric (LayerD protocol): layer pairs, alignment with merges, scores.

Steps are those of docs/evaluation.md: 1 grouping into peels, 2 pair costs, 3 order-aware alignment, 4 merges.
"""
