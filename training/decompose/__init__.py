"""VLD-MMDiT training: latents, captions, objectives, alignment loss, validation."""
