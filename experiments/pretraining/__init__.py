"""The weights that ship, made again by the project's own stages."""
