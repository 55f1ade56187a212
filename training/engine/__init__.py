"""The training loop and what it stands on: resume points, EMA, schedule, processes, sharding."""
