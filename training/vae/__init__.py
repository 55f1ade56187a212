"""Training of the RGBA-VAE: objective, validation, latent statistics, start from nothing."""
