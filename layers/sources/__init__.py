"""Readers: one file per format, each yielding :class:`layers.imaging.stack.LayeredSample`."""
