"""How a network learns: the loop, losses, objectives, validation, memory."""
