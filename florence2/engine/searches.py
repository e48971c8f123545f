"""Greedy search, beam search and sampling as in transformers' `generate`, for all live requests at once, in numpy.

`step_input` says what a step decodes and which tokens may follow, a backend scores them, and `advance` takes the
candidates. A Python loop over requests runs only where a hypothesis finishes or scores are equal.
tests/unit/engine/python_search.py is the same search for a single request in plain Python.
Sources: transformers `generation/utils.py` `_sample` and `_beam_search`.

Shapes: N live requests, R rows of theirs; a group has n requests of K beams, each with 2K candidates. `rows` and
`parents` are the backend's rows; a place is an index into the candidates or the requests of a group.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from florence2.config import ModelConfig
from florence2.engine.backend import NO_DRAW, NO_TOKEN, Candidates, Floats, Group, Integers, StepInput
from florence2.engine.beam import Generation, Search
from florence2.engine.live import Live
from florence2.engine.rules import banned_tokens, penalized_tokens

NEVER = -1e9  # transformers' score of a beam that must not be chosen
LOWEST = -3e38  # about the lowest float32

Booleans = NDArray[np.bool_]
Ended: TypeAlias = "tuple[int, Generation | None]"  # the place among the live searches; None for numbers not finite
Top: TypeAlias = Callable[["list[float]", int], "list[int]"]


class Searches:
    """The hypotheses of all live requests, in arrays by the backend's rows.

    `top` picks the places of the highest scores. Long hypotheses do tie in float32, and transformers breaks ties as
    torch.topk does, so the engine passes that in. It gets lists of the same length and order as in transformers.
    """

    def __init__(self, config: ModelConfig, rows: int, top: Top) -> None:
        self._ids, self._top = config.tokens, top
        self._forced_bos, self._forced_eos = config.generation.forced_bos, config.generation.forced_eos
        size = (rows, 1 + config.max_new_tokens)
        self._tokens = np.full(size, NO_TOKEN, np.int32)
        self._numbers = np.zeros((*size, 2), np.float32)  # log-prob and log mass of each token
        self._scores = np.zeros(rows)
        self._parents = np.arange(rows)
        self._kept = np.zeros(rows, np.int64)  # by the first row of a request
        self._draws = np.full(rows, NO_DRAW)
        self._live = Live([])

    def start(self, search: Search, rows: range, slot: int, encoder_length: int) -> None:
        """Begin a search in its rows, one for each beam; `encoder_length` positions of the slot belong to it."""
        search.rows, search.slot, search.encoder_length = rows, slot, encoder_length
        first, last = rows.start, rows.stop
        self._tokens[first:last] = NO_TOKEN
        self._tokens[first:last, 0] = self._ids.decoder_start
        self._scores[first], self._scores[first + 1 : last] = 0, NEVER
        self._parents[first:last] = rows
        self._draws[first:last] = search.draw() if search.options.temperature else NO_DRAW

    def step_input(self, searches: Sequence[Search]) -> StepInput:
        """Return the input of the next step for these searches, which are sorted by rows."""
        if self._live.searches != searches:
            self._live = Live(searches)
        live, rows = self._live, self._live.layout.rows
        lengths_of_all = [search.length for search in searches]
        self._lengths, self._longest = np.array(lengths_of_all), max(lengths_of_all)
        self._are_first, self._are_last = self._lengths == 1, self._lengths + 1 >= live.max_lengths
        lengths = self._lengths.repeat(live.beams)
        history = self._tokens[rows, : self._longest]
        last = history[live.places, lengths - 1]
        forced = self._forced()
        return StepInput(
            live.layout,
            tokens=last,
            positions=lengths - 1,
            scores=self._scores[rows],
            parents=self._parents[rows],
            kept=self._kept[live.first_rows],
            forced=forced,
            banned=banned_tokens(live, self._ids, history, lengths, last),
            penalized=penalized_tokens(live, history, lengths),
            draws=np.where(forced == NO_TOKEN, self._draws[rows], NO_DRAW) if live.sampling else live.none_drawn,
        )

    def advance(self, found: Sequence[Candidates]) -> list[Ended]:
        """Take the step's candidates of each group. Return the searches that are over, with their answers."""
        ended: list[Ended] = []
        for group, candidates in zip(self._live.layout.groups, found, strict=True):
            lengths, last = self._lengths[group.requests, None], self._are_last[group.requests, None]
            extend = self._extend_one_beam if group.beams == 1 else self._extend_beams
            ended += extend(group, lengths, candidates, (candidates.tokens == self._ids.eos) | last)
        for search in self._live.searches:
            search.length += 1
        for search in self._live.sampling:
            self._draws[search.rows.start] = search.draw()
        return ended

    def so_far(self, search: Search) -> Generation:
        """Return the answer of a search of one beam as if it ended with the newest token, which must exist."""
        return replace(self._answer(search, search.length), finish_reason="")

    def _forced(self) -> Integers:
        """Return the tokens that must follow, [R]."""
        forced = self._live.none_forced
        for where, token in (self._are_first, self._forced_bos), (self._are_last, self._forced_eos):
            if token is not None and where.any():
                forced = np.where(where.repeat(self._live.beams), token, forced)
        return forced

    def _extend_one_beam(
        self, group: Group, lengths: Integers, candidates: Candidates, complete: Booleans
    ) -> Iterator[Ended]:
        """Take one token for each search; yield the searches that are over.

        lengths [n, 1]; complete [n, 1]: which candidates complete their hypothesis.
        """
        self._scores[group.rows] += candidates.log_probs
        self._append(group.rows, lengths, candidates, ...)
        broken = np.isnan(candidates.log_probs)
        for place in (broken | complete).nonzero()[0]:
            request = int(group.requests[place])
            search = self._live.searches[request]
            yield request, None if broken[place] else self._answer(search, search.length + 1)

    def _extend_beams(
        self, group: Group, lengths: Integers, candidates: Candidates, complete: Booleans
    ) -> Iterator[Ended]:
        """Take the best K continuations that are not complete for each search; yield the searches that are over.

        lengths [n, 1]; complete [n, 2K]: which candidates complete their hypothesis.
        """
        beams, requests = group.beams, group.requests.tolist()
        broken = np.isnan(candidates.scores[:, 0]).nonzero()[0].tolist()
        if broken:
            candidates.beams[broken] = 0
        unsettled = [place for place, request in enumerate(requests) if self._live.searches[request].unsettled]
        changing = {*complete[:, :beams].any(1).nonzero()[0].tolist(), *unsettled} - {*broken}
        for place in changing:
            self._collect(self._live.searches[requests[place]], complete[place], candidates, place)
        best = self._best_incomplete(candidates.scores, complete, beams)
        self._move(group.rows, group.rows[best[0], candidates.beams[best]])
        self._scores[group.rows] = candidates.scores[best]
        self._append(group.rows, lengths, candidates, best)
        for place in broken:
            yield requests[place], None
        for place in changing:
            search = self._live.searches[requests[place]]
            if complete[place].all() or self._is_over(search):
                yield requests[place], search.finished[0]

    def _best_incomplete(self, scores: Floats, complete: Booleans, beams: int) -> tuple[Integers, Integers]:
        """Return the places of the best K candidates that go on: searches [n, 1], and candidates [n, K]."""
        searches = np.arange(len(scores))[:, None]
        order = np.arange(2 * beams)[None].repeat(len(scores), 0)
        ranked = scores
        if complete.any():
            scores = (scores + NEVER * complete).astype(np.float32)  # the sum is float64
            order = (-scores).argsort(1, kind="stable")
            ranked = scores[searches, order]
        for place in (ranked[:, 1:] == ranked[:, :-1]).any(1).nonzero()[0]:
            order[place, :beams] = self._top(scores[place].tolist(), beams)
        return searches, order[:, :beams]

    def _move(self, rows: Integers, parents: Integers) -> None:
        """Let each row continue what its parent row has decoded; both are [n, K]."""
        self._parents[rows] = parents
        moved = parents != rows
        if not moved.any():
            return
        targets, sources, longest = rows[moved], parents[moved], self._longest
        tokens = self._tokens[sources, :longest]
        kept = np.full(rows.shape, longest)
        kept[moved] = (tokens != self._tokens[targets, :longest]).argmax(1)  # 0 if they are equal
        self._kept[rows[:, 0]] = kept.min(1)
        self._tokens[targets, :longest] = tokens
        self._numbers[targets, :longest] = self._numbers[sources, :longest]

    def _append(self, rows: Integers, lengths: Integers, candidates: Candidates, chosen: Any) -> None:
        self._tokens[rows, lengths] = candidates.tokens[chosen]
        self._numbers[rows, lengths, 0] = candidates.log_probs[chosen]
        self._numbers[rows, lengths, 1] = candidates.log_masses[chosen]

    def _collect(self, search: Search, complete: Booleans, candidates: Candidates, place: int) -> None:
        """Finish hypotheses. Only the first K candidates may; the others are spares for the running beams."""
        beams, length = search.options.num_beams, search.length
        entries: list[Generation | None] = [*search.finished, *[None] * (beams - len(search.finished))]
        entries += [None] * len(complete)
        for i in complete[:beams].nonzero()[0]:
            row = search.rows[candidates.beams[place, i]]
            numbers = candidates.log_probs[place, i], candidates.log_masses[place, i]
            entries[beams + i] = _generation(
                search,
                np.append(self._tokens[row, 1:length], candidates.tokens[place, i]),
                np.append(self._numbers[row, 1:length], [numbers], 0),
                float(candidates.scores[place, i]),
            )
        best = self._top([-math.inf if entry is None else entry.score for entry in entries], beams)
        search.finished = [entry for entry in (entries[i] for i in best) if entry is not None]
        different = {np.float32(entry.score) for entry in search.finished}  # the next `top` may swap equal ones
        search.unsettled = len(different) < len(search.finished) or len(search.finished) == beams

    def _is_over(self, search: Search) -> bool:
        if len(search.finished) < search.options.num_beams:
            return False
        # transformers' estimate of the best possible score: that of the best running beam as if it ended here.
        best = _final_score(search, float(self._scores[search.rows.start]), search.length)
        return search.options.early_stopping or best <= search.finished[-1].score

    def _answer(self, search: Search, length: int) -> Generation:
        row = search.rows.start
        score = float(self._scores[row])
        return _generation(search, self._tokens[row, 1:length], self._numbers[row, 1:length], score)


def _generation(search: Search, tokens: NDArray[np.int32], numbers: Floats, score: float) -> Generation:
    log_probs, log_masses = map(tuple, numbers.T.tolist())
    score = _final_score(search, score, len(tokens))
    is_cut = len(tokens) == search.options.max_new_tokens
    return Generation(tuple(tokens.tolist()), log_probs, score, "length" if is_cut else "stop", log_masses)


def _final_score(search: Search, score: float, tokens: int) -> float:
    """Return the score in float32, so that ties are those of transformers. It is never -inf, which means no score."""
    return max(float(np.float32(score / float(np.float32(tokens**search.options.length_penalty)))), LOWEST)
