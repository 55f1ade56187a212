"""Networks: RGBA-VAE, VLD-MMDiT, and the folders of their weights."""
