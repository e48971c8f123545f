"""The backend for CPUs: packed weights and a packed cache, and the compiled step that this thread and its helpers run.

A step of base is some 500 operators to torch, each of which wakes threads and checks shapes; here it is one call.

R rows of a step.
"""

from __future__ import annotations

import weakref
from collections.abc import Generator, Sequence
from queue import SimpleQueue
from threading import Thread
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from florence2.config import LOCATION_BINS, ModelConfig, TokenConfig
from florence2.engine.backend import Backend, Candidates, Group, Layout, StepInput, cache_bytes
from florence2.engine.bart import LanguageModel, Prefill, TextEncoder
from florence2.engine.cpu.cache import PackedCache
from florence2.engine.cpu.kernels.layout import BLOCK, Batch, Scratch, Vocabulary
from florence2.engine.cpu.kernels.step import decode
from florence2.engine.cpu.packing import as_array, pack_decoder, whole_vectors
from florence2.locations import NEAR


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

    def step(self, step: StepInput) -> list[Candidates]:
        batch = batch_of(step)
        arguments = (np.zeros(1, np.int64), self._weights, self._vocabulary, self._cache_arrays, batch, self.scratch)
        if self._is_compiled:
            for steps in self._helpers:
                steps.put(arguments)
            decode(0, self.threads, *arguments)  # returns when all threads have done their shares
        else:
            decode(0, 1, *arguments)  # the first call may compile, and fail: this thread reports it
            self._is_compiled = True
        return [self._candidates(step.layout, group) for group in step.layout.groups]

    def clear(self, rows: range) -> None:
        self.cache.clear(rows)

    def _candidates(self, layout: Layout, group: Group) -> Candidates:
        count = 1 if group.beams == 1 else 2 * group.beams
        places = 2 * layout.starts[group.requests][:, None] + np.arange(count)
        scratch = self.scratch
        beams, tokens = np.divmod(scratch.best_places[places], self._size)
        return Candidates(
            scratch.best_sums[places], beams, tokens, scratch.best_log_probs[places], scratch.best_log_masses[places]
        )

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


def batch_of(step: StepInput) -> Batch:
    """Return what the kernels need of the live requests."""
    layout = step.layout
    moved = (step.parents != layout.rows).nonzero()[0]
    return Batch(
        tokens=step.tokens.astype(np.int64),
        rows=layout.rows,
        positions=step.positions,
        starts=layout.starts,
        slots=layout.slots,
        lengths=layout.encoder_lengths,
        moves=np.stack([step.parents[moved], layout.rows[moved]], 1),
        move_starts=moved.searchsorted(layout.starts),
        kept=step.kept,
        beam_scores=step.scores.astype(np.float32),
        forced=step.forced,
        banned=step.banned.tokens.astype(np.int64),
        banned_starts=step.banned.starts,
        penalized=step.penalized.tokens.astype(np.int64),
        penalized_starts=step.penalized.starts,
        penalties=layout.penalties,
        draws=step.draws,
        temperatures=layout.temperatures,
        top_ks=layout.top_ks,
        top_ps=layout.top_ps,
    )
