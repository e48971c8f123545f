"""The engine: `step` admits, prefills, decodes one token for every live hypothesis, and retires who is done.

Single-threaded; `worker.Worker` calls it from its thread, tests and benchmarks call it directly.
"""

from __future__ import annotations

import logging
import math
import time
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from florence2 import config as config_module
from florence2.config import GenerationOptions, ModelConfig
from florence2.engine.attention import Span
from florence2.engine.beam import Candidate, Generation, Search, start_search
from florence2.engine.graphs import StepGraphs
from florence2.engine.kv_cache import KVCache, rows_within
from florence2.engine.model import LanguageModel
from florence2.engine.scheduler import Scheduler
from florence2.engine.scoring import candidates, top
from florence2.engine.sequence import Request, Sequence
from florence2.engine.weights import load_language_model
from florence2.errors import InternalError, InvalidOption, InvalidRequest

log = logging.getLogger(__name__)


class Engine:
    """`rows`: hypotheses that are decoded together; a request takes as many as it has beams.

    `prefill_seconds`: how long prefill may hold up the live requests before their next token. It stops at the end of a
    layer, so a step lasts up to one layer longer than that.
    """

    def __init__(
        self,
        model: LanguageModel,
        config: ModelConfig,
        *,
        rows: int = 24,
        max_waiting: int = 256,
        prefill_seconds: float = 0.05,
    ) -> None:
        self.model = model
        self.config = config
        self.scheduler = Scheduler(rows, max_waiting)
        self.cache = KVCache(config.text, rows, model.cache_dtype, model.device, compiled=bool(model.compiled))
        self.prefill_seconds = prefill_seconds
        self._graphs = StepGraphs(model, self.cache)  # where nothing is compiled
        self._prefilling: deque[Sequence] = deque()
        if model.compiled:  # now, rather than at the first request
            greedy = start_search(GenerationOptions.resolve(config, num_beams=1), config, top)
            self._candidates([greedy], [Span(range(1), slot=0, position=0, encoder_length=1)])

    @classmethod
    def load(
        cls, directory: Path, *, device: str = "cpu", rows: int = 24, kv_cache_bytes: int | None = None, **options: Any
    ) -> Engine:
        """From the folder of an exported decoder, with fewer rows if they took more memory. Raises CheckpointError."""
        config = ModelConfig.load(directory / config_module.FILE_NAME)
        model = load_language_model(directory, config, torch.device(device))
        if kv_cache_bytes is not None:
            rows = rows_within(kv_cache_bytes, rows, config.text, model.cache_dtype)
        return cls(model, config, rows=rows, **options)

    @property
    def kv_bytes_per_row(self) -> int:
        """Keys and values of a beam, and as much again for its request."""
        return self.cache.bytes_per_row

    def check(self, request: Request) -> None:
        """Raises InvalidRequest on what would break a step: callers can reach the decoder without preprocessing."""
        config, features, prompt = self.config, request.image_features, request.prompt_ids
        if features.shape != (config.image.tokens, config.text.d_model) or not np.isfinite(features).all():
            raise InvalidRequest(f"IMAGE_FEATURES must be {config.image.tokens} x {config.text.d_model} finite numbers")
        if not 1 <= len(prompt) <= config.max_prompt_tokens:
            raise InvalidRequest(f"a prompt has 1 to {config.max_prompt_tokens} tokens, not {len(prompt)}")
        if not all(0 <= token < config.text.vocab_size for token in prompt):
            raise InvalidRequest("PROMPT_IDS holds an id that is not in the vocabulary")
        if request.options.num_beams > self.scheduler.rows:
            raise InvalidOption(f"NUM_BEAMS must be at most {self.scheduler.rows} on this server")

    def add(self, request: Request) -> Sequence:
        """Queues a checked request. Raises QueueFull."""
        sequence = Sequence(request, start_search(request.options, self.config, top))
        self.scheduler.add(sequence)
        return sequence

    @torch.inference_mode()
    def step(self) -> list[Sequence]:
        """Returns the sequences that are done. An exception is about the whole batch; see `fail_live`."""
        self._admit()
        self._prefill()
        self._decode()
        return self._retire()

    def generate(self, requests: list[Request]) -> list[Generation]:
        """Answers a list of requests; for tests, parity reports and benchmarks. Raises the first request's error."""
        for request in requests:
            self.check(request)
        sequences = [self.add(request) for request in requests]
        while not self.scheduler.idle:
            self.step()
        for sequence in sequences:
            if isinstance(sequence.outcome, Exception):
                raise sequence.outcome
        return [sequence.outcome for sequence in sequences if isinstance(sequence.outcome, Generation)]

    def fail_live(self) -> list[Sequence]:
        """After a failed step: the live requests are answered with InternalError; those who wait are not touched."""
        for sequence in self.scheduler.live:
            if not sequence.done:
                sequence.finish(InternalError("the decoder failed on this batch of requests; see the server's log"))
        return self._retire()

    def _admit(self) -> None:
        while (sequence := self.scheduler.admit()) is not None:
            sequence.slot = self.cache.take_slot()
            sequence.prefill = self._start_prefill(sequence, sequence.slot)
            self._prefilling.append(sequence)

    def _start_prefill(self, sequence: Sequence, slot: int) -> Iterator[None]:
        features = torch.from_numpy(sequence.request.image_features).to(self.model.device)
        prompt = torch.tensor(sequence.request.prompt_ids, device=self.model.device)
        yield from self.model.prefill(features, prompt, self.cache, slot)

    def _prefill(self) -> None:
        """Works on those who were admitted, in their order, until the time is over; without a limit if nobody waits."""
        deadline = time.monotonic() + self.prefill_seconds
        while self._prefilling:
            sequence = self._prefilling[0]
            self._prefill_piece(sequence)
            if sequence.prefill is None:
                self._prefilling.popleft()
            if time.monotonic() >= deadline and self._decoding():
                return

    def _prefill_piece(self, sequence: Sequence) -> None:
        if sequence.prefill is None:  # it was ended from outside
            return
        try:
            next(sequence.prefill)
        except StopIteration:
            sequence.prefill = None
        except InvalidRequest as error:
            sequence.finish(error)
        except Exception:  # this request's alone: the others have not been touched
            log.exception("prefill failed")
            sequence.finish(InternalError("the text encoder failed on this request; see the server's log"))

    def _decoding(self) -> list[Sequence]:
        return [sequence for sequence in self.scheduler.live if sequence.prefill is None and not sequence.done]

    def _decode(self) -> None:
        live = self._decoding()
        if live:
            found = self._candidates([sequence.search for sequence in live], [_span(sequence) for sequence in live])
            for sequence, scored in zip(live, found, strict=True):
                self._advance(sequence, scored)

    def _candidates(self, searches: list[Search], spans: list[Span]) -> list[list[Candidate]]:
        """Of the next token of each search, best first."""
        known_tokens = self.config.tokens.known
        if self.model.compiled:
            return self.model.compiled.decode(searches, spans, self.cache, known_tokens)
        tokens = [token for search in searches for token in search.last_tokens]
        return candidates(searches, self._graphs.decode(tokens, spans), known_tokens)

    def _advance(self, sequence: Sequence, scored: list[Candidate]) -> None:
        search = sequence.search
        if math.isnan(scored[0].score):
            self.cache.clear(sequence.rows)
            return sequence.finish(InvalidRequest("IMAGE_FEATURES lead to numbers out of the model's range"))
        decoded = [hypothesis.tokens for hypothesis in search.running]
        parents = search.advance(scored)
        if parents is None:
            sequence.finish(search.result())
        else:
            _follow(sequence, parents, decoded)

    def _retire(self) -> list[Sequence]:
        done = self.scheduler.retire()
        for sequence in done:
            if sequence.slot is not None:
                self.cache.free_slot(sequence.slot)
        return done


def _follow(sequence: Sequence, parents: list[int], decoded: list[tuple[int, ...]]) -> None:
    """Row i goes on with what its parent decoded. Beams share long beginnings, and with them keys and values."""
    moves = [(parent, beam) for beam, parent in enumerate(parents) if parent != beam]
    sequence.moves = [(sequence.rows[parent], sequence.rows[beam]) for parent, beam in moves]
    sequence.kept = min((shared_length(decoded[parent], decoded[beam]) for parent, beam in moves), default=0)


def _span(sequence: Sequence) -> Span:
    assert sequence.slot is not None
    encoder_length = len(sequence.request.image_features) + len(sequence.request.prompt_ids)
    position = sequence.search.length - 1
    return Span(sequence.rows, sequence.slot, position, encoder_length, sequence.moves, sequence.kept)


def shared_length(one: tuple[int, ...], other: tuple[int, ...]) -> int:
    """How many tokens two hypotheses begin with alike."""
    return next((i for i, (a, b) in enumerate(zip(one, other, strict=True)) if a != b), len(one))
