"""The backend for CPUs: packed weights and a packed cache, and the compiled step that this thread and its helpers run.

A step of base is some 500 operators to torch, each of which wakes threads and checks shapes; here it is one call.

R rows of a step.
"""

from __future__ import annotations

import itertools
import weakref
from collections.abc import Generator, Iterable, Sequence
from queue import SimpleQueue
from threading import Thread
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from florence2.config import LOCATION_BINS, ModelConfig, TokenConfig
from florence2.engine.backend import Backend, Span, cache_bytes
from florence2.engine.bart import LanguageModel, Prefill, TextEncoder
from florence2.engine.beam import Candidate, Sampling, Search
from florence2.engine.cpu.cache import PackedCache
from florence2.engine.cpu.kernels.layout import BLOCK, Batch, Scratch, Vocabulary
from florence2.engine.cpu.kernels.step import decode
from florence2.engine.cpu.packing import as_array, pack_decoder, whole_vectors
from florence2.locations import NEAR

NO_SAMPLING = Sampling(draw=-1.0, temperature=1.0, top_k=0, top_p=1.0)


class CpuBackend(Backend):
    """Decode with as many threads as torch uses, at most one for each head."""

    def __init__(self, model: LanguageModel, config: ModelConfig, rows: int) -> None:
        text, dtype = config.text, self.cache_dtype(model)
        self.rows, self.cache_bytes = rows, cache_bytes(config, dtype)
        self._vocabulary, self._size = vocabulary_of(config.tokens), text.vocab_size
        self._encoder = TextEncoder(model)
        self._weights = pack_decoder(model)
        self.cache = PackedCache(config, rows, dtype)
        self._cache_arrays = self.cache.arrays()
        self.threads = min(torch.get_num_threads(), text.decoder_heads)
        self._is_compiled = False
        self.scratch = self._make_scratch()
        self._helpers: list[SimpleQueue[tuple[Any, ...] | None]] = [SimpleQueue() for _ in range(1, self.threads)]
        for thread, steps in enumerate(self._helpers, 1):
            Thread(target=_help, args=(thread, self.threads, steps), name=f"decode-{thread}", daemon=True).start()
            weakref.finalize(self, steps.put, None)

    @classmethod
    def cache_dtype(cls, model: LanguageModel) -> torch.dtype:
        return torch.float32 if model.precision == "float32" else torch.bfloat16

    def prefill(self, requests: Sequence[Prefill]) -> Generator[None, None, list[bool]]:
        return self._encoder.prefill(requests, self.cache.write_encoder)

    def step(self, searches: Sequence[Search], spans: Sequence[Span]) -> list[list[Candidate]]:
        batch = batch_of(searches, spans)
        step = (np.zeros(1, np.int64), self._weights, self._vocabulary, self._cache_arrays, batch, self.scratch)
        if self._is_compiled:
            for steps in self._helpers:
                steps.put(step)
            decode(0, self.threads, *step)  # returns when all threads have done their shares
        else:
            decode(0, 1, *step)  # the first call may compile, and fail: this thread reports it
            self._is_compiled = True
        return self._candidates(searches)

    def clear(self, rows: range) -> None:
        self.cache.clear(rows)

    def _candidates(self, searches: Sequence[Search]) -> list[list[Candidate]]:
        rows = sum(len(search.running) for search in searches)
        scratch = self.scratch
        parts = scratch.best_sums, scratch.best_places, scratch.best_log_probs, scratch.best_log_masses
        best = zip(*(part[: 2 * rows].tolist() for part in parts), strict=True)
        found = []
        for search in searches:
            theirs = [
                Candidate(score, place // self._size, place % self._size, log_prob, log_mass)
                for score, place, log_prob, log_mass in itertools.islice(best, 2 * len(search.running))
            ]
            if len(search.running) == 1:
                theirs = [theirs[0]._replace(score=search.running[0].score + theirs[0].log_prob)]
            found.append(theirs)
        return found

    def _make_scratch(self) -> Scratch:
        weights, rows, positions = self._weights, self.rows, max(self.cache.positions, self.cache.encoder_positions)
        d_model, width = weights.self_norm.weight.shape[1], weights.cross_query.bias.shape[1]
        inner, head_size = weights.fc1.bias.shape[1], self._cache_arrays.self_values.shape[-1]
        each = self.threads, rows
        return Scratch(
            x=_zeros(*each, d_model),
            inputs=_zeros(*each, -(-max(inner, width, d_model) // BLOCK) * BLOCK, dtype=torch.uint16),
            row_scales=_zeros(*each),
            scores=_zeros(*each, positions),
            moving=_zeros(*each, positions, head_size, dtype=self.cache.self_keys.dtype),
            projected=_zeros(rows, 3 * width),
            attended=_zeros(rows, width),
            widened=_zeros(rows, inner),
            change=_zeros(rows, whole_vectors(d_model)),
            logits=_zeros(rows, whole_vectors(self._size)),
            largest=_zeros(rows),
            log_sums=_zeros(rows),
            kept_raw=_zeros(rows, dtype=torch.int64),
            raw_logits=_zeros(rows, self._size),
            raw_largest=_zeros(rows),
            raw_log_sums=_zeros(rows),
            weights=_zeros(self.threads, whole_vectors(self._size)),
            best_sums=_zeros(2 * rows),
            best_places=_zeros(2 * rows, dtype=torch.int64),
            best_log_probs=_zeros(2 * rows),
            best_log_masses=_zeros(2 * rows),
        )


def _help(thread: int, threads: int, steps: SimpleQueue[tuple[Any, ...] | None]) -> None:
    """Do one thread's share of every step until None comes."""
    while (step := steps.get()) is not None:
        decode(thread, threads, *step)
        del step  # or the arrays of a backend that is no longer used would stay


def _zeros(*shape: int, dtype: torch.dtype = torch.float32) -> NDArray[Any]:
    """Return zeros that begin at a cache line, as numpy's do not: reading a vector across two lines takes two reads."""
    return as_array(torch.zeros(shape, dtype=dtype))


def vocabulary_of(tokens: TokenConfig) -> Vocabulary:
    """Return what the kernels need of the tokens' ids."""
    return Vocabulary(tokens.known, tokens.first_location, tokens.first_location + LOCATION_BINS - 1, NEAR)


def batch_of(searches: Sequence[Search], spans: Sequence[Span]) -> Batch:
    """Return what the kernels need of the live requests."""
    constraints = [constraint for search in searches for constraint in search.constraints()]
    banned = [token for constraint in constraints for token in constraint.banned]
    penalized = [token for constraint in constraints for token in constraint.penalized]
    samplings = [constraint.sampling or NO_SAMPLING for constraint in constraints]
    return Batch(
        tokens=np.array([token for search in searches for token in search.last_tokens]),
        rows=np.array([row for span in spans for row in span.rows]),
        positions=np.array([span.position for span in spans for _ in span.rows]),
        starts=_starts(len(span.rows) for span in spans),
        slots=np.array([span.slot for span in spans]),
        lengths=np.array([span.encoder_length for span in spans]),
        moves=np.array([move for span in spans for move in span.moves], np.int64).reshape(-1, 2),
        move_starts=_starts(len(span.moves) for span in spans),
        kept=np.array([span.kept for span in spans]),
        beam_scores=np.array([hypothesis.score for search in searches for hypothesis in search.running], np.float32),
        forced=np.array([-1 if each.forced is None else each.forced for each in constraints]),
        banned=np.array(banned, np.int64),
        banned_starts=_starts(len(each.banned) for each in constraints),
        penalized=np.array(penalized, np.int64),
        penalized_starts=_starts(len(each.penalized) for each in constraints),
        penalties=np.array([each.penalty for each in constraints], np.float32),
        draws=np.array([each.draw for each in samplings]),
        temperatures=np.array([each.temperature for each in samplings], np.float32),
        top_ks=np.array([each.top_k for each in samplings]),
        top_ps=np.array([each.top_p for each in samplings], np.float32),
    )


def _starts(counts: Iterable[int]) -> NDArray[np.int64]:
    """Return where groups of these sizes begin, and where the last one ends."""
    return np.array(list(itertools.accumulate(counts, initial=0)))
