"""RGBA-VAE: network, latents, discriminator, and starts from nothing or from an RGB VAE."""
