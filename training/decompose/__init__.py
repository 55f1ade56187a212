"""Training of VLD-MMDiT: latents, captions, objectives, alignment loss, validation."""
