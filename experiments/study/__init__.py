"""Optuna study: its space, storage, trials, confirmation and report."""
