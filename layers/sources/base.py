"""What a reader offers."""

from __future__ import annotations

from abc import ABC, abstractmethod

from layers.imaging.stack import LayeredSample


class Source(ABC):
    """A dataset of layered designs, one reader per format. Readers are pickled to worker processes, so they stay small.

    A reader opens its location when it is made and raises :class:`config.errors.UserError` if that fails; a fault of
    one sample is a :class:`config.errors.SampleError`, never anything else.
    """

    @abstractmethod
    def sample_ids(self) -> list[str]:
        """All ids, unique, in a stable order, without reading pixels."""

    @abstractmethod
    def read(self, sample_id: str) -> LayeredSample:
        """One sample, or SampleError with the reason it cannot be had."""

    @abstractmethod
    def signature(self, sample_id: str) -> str:
        """A short word that changes when the sample's files do; cheap, reads no pixels."""

    def split_key(self, sample_id: str) -> str:
        """What decides its split: samples with one key, such as variants of a template, share a split."""
        return sample_id
