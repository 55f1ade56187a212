"""Interface of all readers."""

from __future__ import annotations

from abc import ABC, abstractmethod

from layers.imaging.stack import LayeredSample


class Source(ABC):
    """A dataset of layered designs, one reader per format. Readers are pickled to worker processes, so they stay small.

    The constructor opens the location and raises :class:`config.errors.UserError` if that fails. A fault of one sample
    raises :class:`config.errors.SampleError` and no other exception.
    """

    @abstractmethod
    def sample_ids(self) -> list[str]:
        """All ids, unique, in a stable order, without reading pixels."""

    @abstractmethod
    def read(self, sample_id: str) -> LayeredSample:
        """Read one sample; raises SampleError with the reason if it cannot be read."""

    @abstractmethod
    def signature(self, sample_id: str) -> str:
        """A short string that changes when the sample's files do; cheap, reads no pixels."""

    def split_key(self, sample_id: str) -> str:
        """Key that decides the split: samples with one key, such as variants of a template, share a split."""
        return sample_id
