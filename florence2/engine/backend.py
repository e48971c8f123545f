"""The interface between the engine and what computes: memory for keys and values, prefill, and the decoding step.

`cpu` and `cuda` implement it. The engine decides which request has which rows and which slot; a backend only reads and
writes them.

N live requests and their R rows in the order of the rows; n requests of K beams, which take K rows each; D d_model.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Generator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from florence2.config import ModelConfig
from florence2.engine.bart import LanguageModel, Prefill

Floats = NDArray[np.float32]
Integers = NDArray[np.int64]
NO_TOKEN = -1
NO_DRAW = -1.0


class DeviceLost(Exception):
    """The device fails on everything until the process ends, as CUDA does after an illegal memory access."""


class Group(NamedTuple):
    """The live requests with the same number of beams."""

    requests: Integers  # [n], their places among the live ones
    rows: Integers  # [n, K]

    @property
    def beams(self) -> int:
        return self.rows.shape[1]


@dataclass(frozen=True, eq=False)
class Layout:
    """Where the live requests are, and the options that backends need: one object until a request comes or goes."""

    rows: Integers  # [R], in order; the K rows of a request are adjacent
    starts: Integers  # [N + 1]: request n has rows[starts[n]] up to rows[starts[n + 1]]
    slots: Integers  # [N]
    encoder_lengths: Integers  # [N], positions of the slot that belong to the request
    groups: list[Group]
    penalties: Floats  # [R]: the scores x of penalized tokens become x * penalty if x < 0, else x / penalty
    temperatures: Floats  # [R]: what draws a token divides the scores by it,
    top_ks: Integers  # [R]: leaves the k most likely tokens, or all if k is 0,
    top_ps: Floats  # [R]: and of these the most likely ones that together have at least the probability p


class TokenLists(NamedTuple):
    """Some tokens for each row."""

    tokens: NDArray[np.int32]  # those of all rows
    starts: Integers  # [R + 1]: row r has tokens[starts[r]] up to tokens[starts[r + 1]]

    def most(self) -> int:
        """Return the length of the longest list."""
        return int((self.starts[1:] - self.starts[:-1]).max())


class StepInput(NamedTuple):
    """What a step decodes, and the rules of the tokens that may follow.

    First come the penalties, then the bans. If a token is forced, it is the only one that may follow.
    """

    layout: Layout
    tokens: NDArray[np.int32]  # [R], the last of every running hypothesis
    positions: Integers  # [R], of these tokens
    scores: NDArray[np.float64]  # [R], sums of log-probs
    parents: Integers  # [R]: before the step, a row takes over what its parent holds
    kept: Integers  # [N], leading positions in which no row differs from its parent: they need no copy
    forced: Integers  # [R], NO_TOKEN where none is
    banned: TokenLists
    penalized: TokenLists  # each token once
    draws: NDArray[np.float64]  # [R], the quantile of the token to draw, from 0 to 1; NO_DRAW where none is drawn


class Candidates(NamedTuple):
    """The continuations of a group's requests, best first: one for a request of one beam, otherwise 2K.

    The log mass is the log of the probability that the model itself, before any rule, gives to the token; of a location
    token, to all locations at most `locations.NEAR` bins away.
    """

    scores: Floats  # [n, 2K], sums of log-probs with this token; not used for one beam
    beams: Integers  # [n, 2K], the hypothesis that is continued
    tokens: Integers  # [n, 2K]
    log_probs: Floats  # [n, 2K], the tokens' own
    log_masses: Floats  # [n, 2K]


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
    def step(self, step: StepInput) -> list[Candidates]:
        """Decode the last token of every running hypothesis and score the next ones under the rules.

        First moves beams (all rows are read before any is written), then writes the new token's keys and values at its
        position of each row.

        Returns:
            The candidates of each of the layout's groups. If the numbers of a request are not finite, the score and the
            log-prob of its first candidate are NaN.
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
