"""Readers: one file per format, each yielding :class:`layers.stack.LayeredSample`."""
