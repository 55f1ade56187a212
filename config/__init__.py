"""Configuration of a run: the schema of params.yaml, the places of files, the errors a user can mend."""
