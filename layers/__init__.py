"""Layered designs: images, datasets, their preparation, readers, the composer, exports."""
