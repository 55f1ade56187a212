"""How a network learns: flow, losses, loop, checkpoints, params, tracking."""
