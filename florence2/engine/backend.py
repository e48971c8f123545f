"""The interface between the engine and what computes: memory for keys and values, prefill, and the decoding step.

`cpu` and `cuda` implement it. The engine decides which request has which rows and which slot; a backend only reads and
writes them.

K rows (beams) of a request, D d_model.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from florence2.config import ModelConfig, TextConfig
from florence2.engine.bart import LanguageModel
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


class Backend(ABC):
    """Decode on one kind of device.

    A backend holds the weights, and memory for all keys and values:

    - rows 0 … `rows` - 1 hold self-attention keys and values, one row for each live hypothesis;
    - slots 0 … `rows` - 1 hold cross-attention keys and values, one slot for each live request.

    The results of a row depend on that row and its slot only, not on the other rows of a step, except that a GPU may
    round differently for another number of rows. One thread calls all methods.

    Attributes:
        rows: the number of rows, and of slots.
        bytes_per_row: memory of one row and one slot together.
    """

    rows: int
    bytes_per_row: int

    @abstractmethod
    def __init__(self, model: LanguageModel, config: ModelConfig, rows: int) -> None:
        """Take over the weights of a loaded model, and allocate all memory, so that no request fails for lack of it."""

    @classmethod
    @abstractmethod
    def cache_dtype(cls, model: LanguageModel) -> torch.dtype:
        """Return the type in which this backend keeps the keys and values of `model`."""

    @abstractmethod
    def prefill(self, image_features: NDArray[np.float32], prompt_ids: Sequence[int], slot: int) -> Iterator[None]:
        """Encode an image and a prompt, and write the decoder's cross-attention keys and values into `slot`.

        The generator stops after each encoder layer, so that steps for other requests can run in between. The slot is
        ready when it is exhausted; until then nothing in the slot may be read.

        Args:
            image_features: [image tokens, D], from the vision encoder.
            prompt_ids: the prompt's tokens, `<s>` and `</s>` included.
            slot: of the request.

        Raises:
            InvalidRequest: the features are so large that the encoder's numbers overflow. The slot is untouched.
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
            For each search the candidates that its `advance` takes, best first: one for a greedy search, 2K for a beam
            search. If the numbers of a request are not finite, the score of its first candidate is NaN.
        """

    def check_device(self) -> None:  # noqa: B027
        """Raise DeviceLost if nothing can be computed any more. The worker asks after a step that failed."""

    @abstractmethod
    def clear(self, rows: range) -> None:
        """Zero what `rows` hold, NaNs above all: the next owner reads past its own length and masks it."""


def bytes_per_row(config: TextConfig, dtype: torch.dtype) -> int:
    """Return the memory of one hypothesis's keys and values together with one request's.

    Base (6 layers, 1024 positions, 768 wide) in bfloat16: 4 * 6 * 1024 * 768 * 2 = 37,748,736.
    """
    return 4 * config.decoder_layers * config.max_positions * config.d_model * dtype.itemsize
