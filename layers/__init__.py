"""What a layered design is: sample type, compositing, buckets, dataset, sources."""
