"""How much memory each stage takes, before anything starts."""
