"""What a run is told: the schema of params.yaml, where files lie, errors that are the user's."""
