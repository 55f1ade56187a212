"""Inference with a trained model: images in, layers of the same size out."""
