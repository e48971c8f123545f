"""Greedy and beam search and sampling of one request's tokens, in pure Python: the reference of `engine.searches`.

A search says what the next tokens may be (`constraints`), a backend scores them, and `advance` takes the candidates.
test_exactness compares the engine with transformers, and test_searches with this.
Sources: transformers `generation/utils.py` `_sample` and `_beam_search`, `generation/logits_process.py`.
A hypothesis' tokens begin with the decoder's start token; as in transformers, lengths count it.
"""

from __future__ import annotations

import dataclasses
import math
import random
import struct
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Literal, NamedTuple, TypeAlias

from florence2.config import ModelConfig, TokenConfig
from florence2.contract import GenerationOptions
from florence2.engine.beam import Generation

NEVER = -1e9  # transformers' score of a beam that must not be chosen
LOWEST = -3e38  # about the lowest float32


class Candidate(NamedTuple):
    """A continuation: `score` is the hypothesis' sum of log-probs with this token, `log_prob` the token's own.

    `log_mass` is the log of the probability that the model itself, before any rule, gives to the token; of a location
    token, to all locations at most `locations.NEAR` bins away.
    """

    score: float
    beam: int
    token: int
    log_prob: float
    log_mass: float = 0.0


@dataclass(frozen=True)
class Hypothesis:
    """A sequence of tokens that may become the answer."""

    tokens: tuple[int, ...]
    log_probs: tuple[float, ...]  # of all tokens but the start token
    score: float  # sum of log_probs, in the float32 arithmetic of the logits
    log_masses: tuple[float, ...] = ()  # of the same tokens

    def extend(self, candidate: Candidate) -> Hypothesis:
        """Return this hypothesis with one more token."""
        return Hypothesis(
            (*self.tokens, candidate.token),
            (*self.log_probs, candidate.log_prob),
            candidate.score,
            (*self.log_masses, candidate.log_mass),
        )


Finished: TypeAlias = "tuple[float, Hypothesis]"  # the final score first
Top: TypeAlias = Callable[["list[float]", int], "list[int]"]


@dataclass(frozen=True)
class Sampling:
    """How the next token is drawn: the quantile `draw` of a distribution that is first changed, in this order.

    Scores are divided by the temperature; only the `top_k` most likely tokens stay, and of these the most likely ones
    that together have at least the probability `top_p`.
    """

    draw: float  # from 0 up to, but not including, 1
    temperature: float  # above 0
    top_k: int  # 0 is all
    top_p: float


@dataclass(frozen=True)
class Constraint:
    """What the next token of a hypothesis may be: the `forced` one if there is one, else all but the `banned` ones.

    First the scores x of the `penalized` tokens become x * penalty if x < 0, else x / penalty. What the rules leave is
    ranked, or drawn from if there is a `sampling`.
    """

    forced: int | None
    banned: list[int]
    penalized: Collection[int] = ()  # each token once
    penalty: float = 1.0
    sampling: Sampling | None = None


class Search(ABC):
    """The running hypotheses and the rules of the next token, which greedy and beam search share."""

    def __init__(self, options: GenerationOptions, config: ModelConfig) -> None:
        self.options = options
        self.tokens: TokenConfig = config.tokens
        self.forced_bos = config.generation.forced_bos
        self.forced_eos = config.generation.forced_eos
        self.running = [Hypothesis((config.tokens.decoder_start,), (), 0.0)]
        self.running += [Hypothesis((config.tokens.decoder_start,), (), NEVER)] * (options.num_beams - 1)
        self.finished: list[Finished] = []  # best first

    @property
    def length(self) -> int:
        """The number of tokens of every running hypothesis, the start token included."""
        return len(self.running[0].tokens)

    @property
    def max_length(self) -> int:
        return 1 + self.options.max_new_tokens

    @property
    def last_tokens(self) -> list[int]:
        return [hypothesis.tokens[-1] for hypothesis in self.running]

    def constraints(self) -> list[Constraint]:
        """Return the rules of the next token, one constraint for each running hypothesis."""
        forced = self.forced_bos if self.length == 1 else None
        if self.length == self.max_length - 1 and self.forced_eos is not None:
            forced = self.forced_eos
        if forced is not None:
            return [Constraint(forced, [])] * len(self.running)
        size, penalty = self.options.no_repeat_ngram_size, self.options.repetition_penalty
        too_early = [self.tokens.eos] if self.length <= self.options.min_new_tokens else []
        after_bos = too_early + [self.tokens.bos] * self.options.suppress_repeated_bos
        return [
            Constraint(
                None,
                banned=repeating_tokens(hypothesis.tokens, size)
                + (after_bos if hypothesis.tokens[-1] == self.tokens.bos else too_early),
                penalized=() if penalty == 1 else set(hypothesis.tokens),
                penalty=penalty,
            )
            for hypothesis in self.running
        ]

    def result(self) -> Generation:
        """Return the answer, once `advance` has returned None."""
        score, best = self.finished[0]
        reason: Literal["stop", "length"] = "length" if len(best.tokens) == self.max_length else "stop"
        return Generation(best.tokens[1:], best.log_probs, score, reason, best.log_masses)

    def _complete(self, candidates: list[Candidate]) -> list[bool]:
        """Return which candidates complete their hypothesis."""
        last = self.length + 1 >= self.max_length
        return [last or candidate.token == self.tokens.eos for candidate in candidates]

    def _final_score(self, hypothesis: Hypothesis) -> float:
        """Return the score in float32, so that ties are those of transformers. Never -inf, which means no score."""
        length = len(hypothesis.tokens) - 1
        score = single_precision(hypothesis.score / single_precision(length**self.options.length_penalty))
        return max(score, LOWEST)

    @abstractmethod
    def advance(self, candidates: list[Candidate]) -> list[int] | None:
        """Take the scored candidates, best first. Return each running beam's parent, or None at the end."""


class GreedySearch(Search):
    """The best token each time. A step gives one candidate."""

    def advance(self, candidates: list[Candidate]) -> list[int] | None:
        [complete] = self._complete(candidates[:1])
        hypothesis = self.running[0].extend(candidates[0])
        self.running = [hypothesis]
        if not complete:
            return [0]
        self.finished = [(self._final_score(hypothesis), hypothesis)]
        return None

    def so_far(self) -> Generation:
        """Return the answer as if it ended with the newest token; there must be one."""
        newest = self.running[0]
        return Generation(newest.tokens[1:], newest.log_probs, self._final_score(newest), "", newest.log_masses)


class RandomSearch(GreedySearch):
    """A random token each time, drawn by a generator of the request's own. A step gives one candidate."""

    def __init__(self, options: GenerationOptions, config: ModelConfig) -> None:
        super().__init__(options, config)
        self._random = random.Random(options.seed)  # None is any seed
        self._draw = self._random.random()

    def constraints(self) -> list[Constraint]:
        options = self.options
        # Below 1e-6, numbers would leave the range of float32, and the most likely token is drawn in any case.
        sampling = Sampling(self._draw, max(options.temperature, 1e-6), options.top_k, options.top_p)
        return [
            constraint if constraint.forced is not None else dataclasses.replace(constraint, sampling=sampling)
            for constraint in super().constraints()
        ]

    def advance(self, candidates: list[Candidate]) -> list[int] | None:
        self._draw = self._random.random()
        return super().advance(candidates)


class BeamSearch(Search):
    """The best num_beams hypotheses. A step gives 2 * num_beams candidates: num_beams continue even if the others end.

    `top` picks the places of the highest scores. Long hypotheses do tie in float32, and transformers breaks ties as
    torch.topk happens to, so the engine passes that in; the lists below have the length and order of transformers'.
    """

    def __init__(self, options: GenerationOptions, config: ModelConfig, top: Top) -> None:
        super().__init__(options, config)
        self._top = top

    def advance(self, candidates: list[Candidate]) -> list[int] | None:
        complete = self._complete(candidates)
        self._collect(candidates, complete)
        if all(complete):
            return None
        scores = [candidate.score + NEVER * done for candidate, done in zip(candidates, complete, strict=True)]
        kept = [candidates[place] for place in self._top(scores, self.options.num_beams)]
        self.running = [self.running[candidate.beam].extend(candidate) for candidate in kept]
        return None if self._is_over() else [candidate.beam for candidate in kept]

    def _collect(self, candidates: list[Candidate], complete: list[bool]) -> None:
        """Only the first num_beams candidates may finish; the others are spares for the running beams."""
        beams = self.options.num_beams
        if not self.finished and not any(complete[:beams]):
            return  # most steps end here: nothing to sort
        places: list[Finished | None] = [*self.finished, *[None] * (beams - len(self.finished))]
        for place, (candidate, done) in enumerate(zip(candidates, complete, strict=True)):
            if done and place < beams:
                hypothesis = self.running[candidate.beam].extend(candidate)
                places.append((self._final_score(hypothesis), hypothesis))
            else:
                places.append(None)
        best = self._top([-math.inf if entry is None else entry[0] for entry in places], beams)
        self.finished = [entry for entry in (places[i] for i in best) if entry is not None]

    def _is_over(self) -> bool:
        if len(self.finished) < self.options.num_beams:
            return False
        # transformers' estimate of the best possible score: that of the best running beam as if it ended here.
        return self.options.early_stopping or self._final_score(self.running[0]) <= self.finished[-1][0]


def start_search(options: GenerationOptions, config: ModelConfig, top: Top) -> Search:
    """Return a new search for these options."""
    if options.num_beams > 1:
        return BeamSearch(options, config, top)
    return RandomSearch(options, config) if options.temperature else GreedySearch(options, config)


def single_precision(value: float) -> float:
    """Return a number rounded to float32."""
    return float(struct.unpack("f", struct.pack("f", value))[0])


def repeating_tokens(tokens: tuple[int, ...], size: int) -> list[int]:
    """Return the tokens that would make an n-gram of `size` occur twice; none if `size` is 0."""
    if size == 0 or len(tokens) < size:
        return []
    if size == 1:
        return list(tokens)
    context, last = tokens[len(tokens) - size + 1 :], tokens[-1]
    found, place = [], tokens.index(last, size - 2)
    while place < len(tokens) - 1:  # where the last token finds itself
        if tokens[place - size + 2 : place + 1] == context:
            found.append(tokens[place + 1])
        place = tokens.index(last, place + 1)
    return found
