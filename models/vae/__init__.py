"""RGBA-VAE: network, latents, discriminator, initialisation as a linear code or from an RGB VAE."""
