"""Bucketed dataset: its manifest, storage, splits, buckets, batches and loaders."""
