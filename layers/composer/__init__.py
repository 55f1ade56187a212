"""Composer of the embedded default data: an endless, deterministic stream of designs made of real images.

:func:`compose.compose` draws sample number i; :func:`writer.write_dataset` writes samples in the form of a user's own
dataset, so that both go through one reader.
"""
