"""Training loop and its parts: resume points, EMA, schedule, processes, sharding."""
