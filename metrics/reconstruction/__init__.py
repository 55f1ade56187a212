"""Reconstruction metrics: PSNR, SSIM and LPIPS over backgrounds, Fréchet distance."""
