"""Training: loop, losses, objectives, validation, memory plans."""
