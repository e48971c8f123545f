"""The interface between the engine and what computes: memory for keys and values, prefill, and the decoding step.

`cpu` and `cuda` implement it. The engine decides which request has which rows and which slot; a backend only reads and
writes them.

K rows (beams) of a request, D d_model.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Generator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch

from florence2.config import ModelConfig
from florence2.engine.bart import LanguageModel, Prefill
from florence2.engine.beam import Candidate, Search


class DeviceLost(Exception):
    """The device fails on everything until the process ends, as CUDA does after an illegal memory access."""


@dataclass(frozen=True)
class Span:
    """One live request's share of a step."""

    rows: range  # K adjacent rows, one for each running hypothesis
    slot: int
    position: int  # of the token that is decoded now; the same in all K rows
    encoder_length: int  # positions of the slot that belong to the request
    moves: Sequence[tuple[int, int]] = ()  # (from, to): before the step, row `to` takes over what row `from` holds
    kept: int = 0  # leading positions that are equal in all rows of `moves` and need no copy


class CacheBytes(NamedTuple):
    """Memory of keys and values."""

    row: int  # for self-attention, of one hypothesis
    slot: int  # for cross-attention, of one request


class Backend(ABC):
    """Decode on one kind of device.

    A backend holds the weights, and memory for all keys and values:

    - rows 0 … `rows` - 1 hold self-attention keys and values, one row for each live hypothesis;
    - slots 0 … `rows` - 1 hold cross-attention keys and values, one slot for each live request.

    The results of a row depend on that row and its slot only, not on the other rows of a step, except that a GPU may
    round differently for another number of rows. One thread calls all methods.

    Attributes:
        rows: the number of rows, and of slots.
        cache_bytes: memory of a row and of a slot.
        prefill_batch: the number of requests that prefill takes together at most.
    """

    rows: int
    cache_bytes: CacheBytes
    prefill_batch: int = 1

    @abstractmethod
    def __init__(self, model: LanguageModel, config: ModelConfig, rows: int) -> None:
        """Take over the weights of a loaded model, and allocate all memory, so that no request fails for lack of it."""

    @classmethod
    @abstractmethod
    def cache_dtype(cls, model: LanguageModel) -> torch.dtype:
        """Return the type in which this backend keeps the keys and values of `model`."""

    @classmethod
    def memory_bytes(cls, model: LanguageModel, config: ModelConfig, rows: int) -> int:
        """Return what a backend with so many rows takes of the budget: keys, values, and what else grows with it."""
        return rows * sum(cache_bytes(config, cls.cache_dtype(model)))

    @abstractmethod
    def prefill(self, requests: Sequence[Prefill]) -> Generator[None, None, list[bool]]:
        """Encode images and prompts, and write the decoder's cross-attention keys and values into the requests' slots.

        The generator stops after each encoder layer, so that steps for other requests can run in between. The slots are
        ready when it is exhausted; until then nothing in them may be read.

        Args:
            requests: at most `prefill_batch`.

        Returns:
            For each request whether its slot is ready. If not, the image's features are so large that the encoder's
            numbers overflow, and the slot holds other numbers, all finite. That does not affect the other requests.
        """

    @abstractmethod
    def step(self, searches: Sequence[Search], spans: Sequence[Span]) -> list[list[Candidate]]:
        """Decode the last token of every running hypothesis and score the next ones under the searches' constraints.

        First carries out each span's `moves` (all rows are read before any is written), then writes the new token's
        keys and values at `position` of each row.

        Args:
            searches: the live requests' searches.
            spans: their rows and slots, in the same order, sorted by rows; as many rows as the search has hypotheses.

        Returns:
            For each search the candidates that its `advance` takes, best first: one for a search of one beam, 2K for a
            beam search. If the numbers of a request are not finite, the score of its first candidate is NaN.
        """

    def check_device(self) -> None:  # noqa: B027
        """Raise DeviceLost if nothing can be computed any more. The worker asks after a step that failed."""

    @abstractmethod
    def clear(self, rows: range) -> None:
        """Zero what `rows` hold, NaNs above all: the next owner reads past its own length and masks it."""


def cache_bytes(config: ModelConfig, dtype: torch.dtype) -> CacheBytes:
    """Return the memory of a row and of a slot.

    Large (12 layers, 1024 wide) in bfloat16: 2 * 12 * 1024 * 2 bytes for each of a row's 4096 and a slot's 1024
    positions.
    """
    text = config.text
    position = 2 * text.decoder_layers * text.d_model * dtype.itemsize
    return CacheBytes(text.max_positions * position, config.encoder_positions * position)
