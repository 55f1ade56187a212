"""Images and layers as arrays: reading and writing files, compositing, resampling, tensors."""
