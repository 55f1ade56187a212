"""RGBA-VAE training: objective, validation, latent statistics, initialisation."""
