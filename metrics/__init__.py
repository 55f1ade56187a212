"""What a number means: decomposition, reconstruction."""
