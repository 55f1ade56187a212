"""Experiments over many stage runs: Optuna studies and pretraining. Optuna is imported here only."""
