"""Commands: the five stages of the pipeline, and tools beside it."""
