"""Memory plans: estimated memory of each stage, before it starts."""
