"""What runs: one command per stage."""
