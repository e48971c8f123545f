"""The engine: `step` admits, prefills, decodes one token for every live hypothesis, and retires who is done.

Single-threaded; `worker.Worker` calls it from its thread, tests and benchmarks call it directly.
"""

from __future__ import annotations

import logging
import math
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from florence2 import config as config_module
from florence2.config import ModelConfig
from florence2.engine.beam import Generation, start_search
from florence2.engine.kv_cache import SelfKV
from florence2.engine.model import LanguageModel, Span
from florence2.engine.scheduler import Scheduler
from florence2.engine.scoring import candidates, top
from florence2.engine.sequence import Request, Sequence
from florence2.engine.weights import load_language_model
from florence2.errors import InternalError, InvalidOption, InvalidRequest

log = logging.getLogger(__name__)


class Engine:
    """`rows`: hypotheses that are decoded together; a request takes as many as it has beams."""

    def __init__(self, model: LanguageModel, config: ModelConfig, *, rows: int = 24, max_waiting: int = 256) -> None:
        self.model = model
        self.config = config
        weight = model.shared.weight
        self.device, self.dtype = weight.device, weight.dtype
        self.scheduler = Scheduler(rows, max_waiting)
        self.cache = SelfKV(config.text, rows, self.dtype, self.device)

    @classmethod
    def load(cls, directory: Path, *, device: str = "cpu", rows: int = 24, max_waiting: int = 256) -> Engine:
        """From the folder of an exported decoder. Raises CheckpointError."""
        config = ModelConfig.load(directory / config_module.FILE_NAME)
        model = load_language_model(directory, config, torch.device(device))
        return cls(model, config, rows=rows, max_waiting=max_waiting)

    @property
    def kv_bytes_per_row(self) -> int:
        """Reserved keys and values of one beam."""
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

    def step(self) -> list[Sequence]:
        """Returns the sequences that are done. An exception is about the whole batch; see `fail_live`."""
        self._admit()
        self._decode()
        return self.scheduler.retire()

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
        return self.scheduler.retire()

    def _admit(self) -> None:
        """At most one request a step, so that the live ones never wait for more than one prefill."""
        sequence = self.scheduler.admit()
        if sequence is None:
            return
        try:
            self._prefill(sequence)
        except Exception:  # this request's alone: the others have not been touched
            log.exception("prefill failed")
            sequence.finish(InternalError("the text encoder failed on this request; see the server's log"))

    def _prefill(self, sequence: Sequence) -> None:
        features = torch.from_numpy(sequence.request.image_features).to(self.device, self.dtype)
        sequence.cross = self.model.encode(features, torch.tensor(sequence.request.prompt_ids, device=self.device))

    def _decode(self) -> None:
        live = [sequence for sequence in self.scheduler.live if not sequence.done]
        if not live:
            return
        spans = _spans(live)
        tokens = [token for sequence in live for token in sequence.search.last_tokens]
        positions = [span.position for span in spans for _ in range(span.batch.start, span.batch.stop)]
        logits = self.model.decode(
            torch.tensor(tokens, device=self.device), torch.tensor(positions, device=self.device), spans, self.cache
        )
        for sequence, span in zip(live, spans, strict=True):
            self._advance(sequence, logits[span.batch])

    def _advance(self, sequence: Sequence, logits: Tensor) -> None:
        """logits: [K, V] of this sequence's beams."""
        search = sequence.search
        length = search.length
        scored = candidates(search, logits, self.config.tokens.known)
        if math.isnan(scored[0].score):
            return sequence.finish(InvalidRequest("IMAGE_FEATURES lead to numbers out of the model's range"))
        parents = search.advance(scored)
        if parents is None:
            sequence.finish(search.result())
        else:
            self.cache.reorder(sequence.rows, parents, length)


def _spans(live: list[Sequence]) -> list[Span]:
    spans, start = [], 0
    for sequence in live:
        stop = start + len(sequence.rows)
        rows = slice(sequence.rows.start, sequence.rows.stop)
        spans.append(Span(slice(start, stop), rows, sequence.search.length - 1, sequence.cross))
        start = stop
    return spans
