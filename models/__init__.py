"""What a network is: RGBA-VAE, VLD-MMDiT, and the folders their weights lie in."""
