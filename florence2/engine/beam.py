"""What a search keeps for one request; the tokens of its hypotheses are in the arrays of `searches.Searches`.

A hypothesis' tokens begin with the decoder's start token; as in transformers, lengths count it.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from typing import Literal

from florence2.contract import GenerationOptions


@dataclass(frozen=True)
class Generation:
    """The answer: generated tokens without the start token, `<s>` and `</s>` included, and the numbers of each."""

    tokens: tuple[int, ...]
    log_probs: tuple[float, ...]
    score: float  # sum of log_probs / len(tokens) ** length_penalty
    finish_reason: Literal["stop", "length", ""]  # empty for a partial answer
    log_masses: tuple[float, ...] = ()


@dataclass(eq=False)
class Search:
    """Greedy search, beam search or sampling of one request's tokens."""

    options: GenerationOptions
    rows: range = range(0)  # this and the next two as `Searches.start` sets them
    slot: int = -1
    encoder_length: int = 0
    length: int = 1  # of every running hypothesis
    finished: list[Generation] = field(default_factory=list)  # hypotheses, best first
    unsettled: bool = False  # a step can change `finished`, or end the search, without another finished hypothesis

    def __post_init__(self) -> None:
        self._random = random.Random(self.options.seed)  # None is any seed

    @property
    def max_length(self) -> int:
        return 1 + self.options.max_new_tokens

    @property
    def can_be_followed(self) -> bool:
        """Return whether there is an answer so far: beams might yet drop theirs."""
        return self.options.num_beams == 1 and self.length > 1

    def draw(self) -> float:
        """Return the quantile of the next token to draw, by a generator of the request's own."""
        return self._random.random()
