"""What a network is: RGBA-VAE, VLD-MMDiT, weight conversion."""
