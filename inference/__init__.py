"""A trained model in use: images in, layers of their own size out."""
