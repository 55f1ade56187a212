"""Many runs of the stages: Optuna studies and the pretraining of what ships. Optuna is imported here only."""
