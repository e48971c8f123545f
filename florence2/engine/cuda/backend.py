"""The backend for CUDA: one padded step for every combination of buckets, captured as a graph and replayed.

A step of base is about 600 small kernels, and launching them one by one would take longer than running them. On a CPU,
in tests, the same steps run without graphs.

R rows of a step, V rows of the embedding.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from florence2.config import ModelConfig
from florence2.engine.backend import Backend, DeviceLost, Span, bytes_per_row
from florence2.engine.bart import LanguageModel, TextEncoder
from florence2.engine.beam import Candidate, Search
from florence2.engine.cuda.cache import PaddedCache
from florence2.engine.cuda.step import PaddedDecoder, PaddedStep, bucket
from florence2.engine.scoring import candidates

log = logging.getLogger(__name__)

ENCODER_BUCKET = 64  # positions: base's images and usual prompts have 580 to 640
WARM_UP = 3  # runs before a capture, in which libraries allocate what a graph may not


class CudaBackend(Backend):
    """Decode with one graph for each combination of buckets, captured when it is first needed.

    Rows and decoder positions come in powers of two, encoder positions in multiples of ENCODER_BUCKET.
    """

    def __init__(self, model: LanguageModel, config: ModelConfig, rows: int) -> None:
        dtype = self.cache_dtype(model)
        self.rows, self.bytes_per_row = rows, bytes_per_row(config.text, dtype)
        self.cache = PaddedCache(config.text, rows, dtype, model.device)
        self._known_tokens = config.tokens.known
        self._encoder = TextEncoder(model)
        self._decoder = PaddedDecoder(model)
        self._steps: dict[tuple[int, int, int], PaddedStep] = {}
        self._runs: dict[PaddedStep, Callable[[], Tensor]] = {}

    @classmethod
    def cache_dtype(cls, model: LanguageModel) -> torch.dtype:
        return model.dtype

    def prefill(self, image_features: NDArray[np.float32], prompt_ids: Sequence[int], slot: int) -> Iterator[None]:
        layers = yield from self._encoder.encode(image_features, prompt_ids)
        for layer, (keys, values) in enumerate(layers):
            self.cache.write_encoder(layer, slot, keys, values)

    def step(self, searches: Sequence[Search], spans: Sequence[Span]) -> list[list[Candidate]]:
        tokens = [token for search in searches for token in search.last_tokens]
        return candidates(searches, self.logits(tokens, spans), self._known_tokens)

    def clear(self, rows: range) -> None:
        self.cache.clear(rows)

    def check_device(self) -> None:
        if self.cache.device.type == "cuda":
            try:
                torch.cuda.synchronize(self.cache.device)
            except RuntimeError as error:
                raise DeviceLost(f"{self.cache.device} fails on everything") from error

    def logits(self, tokens: Sequence[int], spans: Sequence[Span]) -> Tensor:
        """Return float32 logits [R, V] of what follows each row's last token, both in the order of the spans' rows."""
        rows = [row for span in spans for row in span.rows]
        device = self.cache.device
        # Captures and replays run on the current device, and each thread has its own.
        with torch.cuda.device(device) if device.type == "cuda" else nullcontext():
            step = self._step_for(spans)
            step.fill(tokens, spans)  # before a capture, whose warm-up may decode these tokens more than once
            if step not in self._runs:
                self._runs[step] = self._capture(step)
            return self._runs[step]()[torch.tensor(rows, device=device)]

    def _step_for(self, spans: Sequence[Span]) -> PaddedStep:
        limit = self.cache.positions
        encoder_length = max(span.encoder_length for span in spans)
        sizes = (
            min(self.rows, 1 << (spans[-1].rows.stop - 1).bit_length()),
            bucket(max(span.position for span in spans) + 1, limit),
            min(limit, -(-encoder_length // ENCODER_BUCKET) * ENCODER_BUCKET),
        )
        if sizes not in self._steps:
            self._steps[sizes] = PaddedStep(self.cache, *sizes)
        return self._steps[sizes]

    def _capture(self, step: PaddedStep) -> Callable[[], Tensor]:
        """Return a call that runs the step on what it is filled with, and returns the logits of all its rows."""
        if self.cache.device.type != "cuda":
            return lambda: self._decoder.decode(step)
        own, stream = torch.cuda.current_stream(), torch.cuda.Stream()
        graph = torch.cuda.CUDAGraph()
        try:
            stream.wait_stream(own)
            with torch.cuda.stream(stream):
                for _ in range(WARM_UP):
                    self._decoder.decode(step)
            own.wait_stream(stream)
            # thread_local: what other threads do on the device meanwhile does not break the capture.
            with torch.cuda.graph(graph, stream=stream, capture_error_mode="thread_local"):
                logits = self._decoder.decode(step)
        except RuntimeError:
            log.exception("a step could not be captured as a graph; it runs without one, which is slower")
            torch.cuda.set_stream(own)  # or the thread would stay on the capture's stream
            self.check_device()
            return lambda: self._decoder.decode(step)

        def replay() -> Tensor:
            graph.replay()
            return logits

        return replay
