"""Commands: the five stages of the pipeline, and what people type besides."""
