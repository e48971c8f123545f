"""The engine: `step` admits, prefills, decodes one token for every live hypothesis, and retires what is done.

Single-threaded; `worker.Worker` calls it from its thread, tests and benchmarks call it directly.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from florence2 import config as config_module
from florence2.config import ModelConfig
from florence2.engine.backend import Backend
from florence2.engine.beam import Generation, Search
from florence2.engine.prefill import PrefillQueue
from florence2.engine.scheduler import Scheduler
from florence2.engine.scoring import top
from florence2.engine.searches import Searches
from florence2.engine.sequence import Request, Sequence
from florence2.engine.weights import create_backend, load_language_model
from florence2.errors import InternalError, InvalidOption, InvalidRequest


class Engine:
    """Decode requests in flight with a backend, whose rows bound the batch; a request takes one for each beam.

    `prefill_seconds`: how long prefill may delay the next token of the live requests. It stops at the end of a layer,
    so a step can take one layer longer than that.
    """

    def __init__(
        self, backend: Backend, config: ModelConfig, *, max_waiting: int = 256, prefill_seconds: float = 0.05
    ) -> None:
        self.backend = backend
        self.config = config
        self.scheduler = Scheduler(backend.rows, max_waiting)
        self.prefill_seconds = prefill_seconds
        self.searches = Searches(config, backend.rows, top)
        self._prefills = PrefillQueue(backend)
        # A first step, since backends compile it: better now than at the first request.
        greedy = Search(config.generation_options(num_beams=1))
        self.searches.start(greedy, range(1), slot=0, encoder_length=1)
        with torch.inference_mode():
            backend.step(self.searches.step_input([greedy]))

    @classmethod
    def load(
        cls, directory: Path, *, device: str = "cpu", rows: int = 24, kv_cache_bytes: int | None = None, **options: Any
    ) -> Engine:
        """Return an engine for the folder of an exported decoder, with fewer rows if `kv_cache_bytes` asks for it.

        Raises CheckpointError.
        """
        config = ModelConfig.load(directory / config_module.FILE_NAME)
        model = load_language_model(directory, config, torch.device(device))
        return cls(create_backend(model, config, rows, kv_cache_bytes), config, **options)

    def check(self, request: Request) -> None:
        """Raise InvalidRequest on what would break a step: clients can call the decoder without preprocessing."""
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
        """Queue a checked request. Raises QueueFull."""
        sequence = Sequence(request, Search(request.options))
        self.scheduler.add(sequence)
        return sequence

    @torch.inference_mode()
    def step(self) -> list[Sequence]:
        """Advance every live request by a token; return the sequences that are done.

        An exception concerns the whole batch; see `fail_live`.
        """
        self._admit()
        self._prefill()
        self._decode()
        return self.scheduler.retire()

    def generate(self, requests: list[Request]) -> list[Generation]:
        """Decode all requests, for tests, parity reports and benchmarks. Raises the error of the first that fails."""
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
        """End all live requests with InternalError, after a step that failed; waiting requests stay."""
        for sequence in self.scheduler.live:
            if not sequence.done:
                sequence.finish(InternalError("the decoder failed on this batch of requests; see the server's log"))
        return self.scheduler.retire()

    def _admit(self) -> None:
        while (sequence := self.scheduler.admit()) is not None:
            request = sequence.request
            encoder_length = len(request.image_features) + len(request.prompt_ids)
            self.searches.start(sequence.search, sequence.rows, sequence.slot, encoder_length)
            self._prefills.add(sequence)

    def _prefill(self) -> None:
        """Prefill in order of admission until the time is up; without a limit if no request is being decoded."""
        deadline = time.monotonic() + self.prefill_seconds
        while self._prefills.advance():
            if time.monotonic() >= deadline and self._decoding():
                return

    def _decoding(self) -> list[Sequence]:
        return [sequence for sequence in self.scheduler.live if sequence.prefilled and not sequence.done]

    def _decode(self) -> None:
        live = self._decoding()
        if live:
            found = self.backend.step(self.searches.step_input([sequence.search for sequence in live]))
            for place, answer in self.searches.advance(found):
                sequence = live[place]
                if answer is None:
                    self.backend.clear(sequence.rows)
                    sequence.finish(InvalidRequest("IMAGE_FEATURES lead to numbers out of the model's range"))
                else:
                    sequence.finish(answer)
