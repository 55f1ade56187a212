"""VLD-MMDiT, the decomposition network: flow matching, sampling, text condition, LoRA."""
