"""What a layered design is: images, datasets, their preparation, readers, the composer, exports."""
