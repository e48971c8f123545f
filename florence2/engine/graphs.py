"""Decode steps of static shapes: one for every combination of buckets, captured as a CUDA graph and replayed.

A step of base is about 600 small kernels, and launching them one by one would take longer than running them. Without
CUDA the same steps run as they are, which is how they are tested: nothing here has been run on a GPU yet.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from florence2.engine.attention import PaddedStep, Span, bucket
from florence2.engine.kv_cache import KVCache
from florence2.engine.model import LanguageModel

ENCODER_BUCKET = 64  # positions: base's pictures and usual prompts have 580 to 640
WARM_UP = 3  # runs before a capture, in which libraries allocate what a graph may not


class StepGraphs:
    """Made as they are needed: rows and decoder positions by powers of two, encoder positions by ENCODER_BUCKET."""

    def __init__(self, model: LanguageModel, cache: KVCache) -> None:
        self.model, self.cache = model, cache
        self._steps: dict[tuple[int, int, int], PaddedStep] = {}
        self._runs: dict[PaddedStep, Callable[[], Tensor]] = {}

    def decode(self, tokens: Sequence[int], spans: Sequence[Span]) -> Tensor:
        """The last token of each row -> float32 logits [R, V], both in the order of the spans' rows."""
        step = self._step_for(spans)
        step.fill(tokens, spans)  # before a capture: its warm-up decodes these very tokens, which may be done twice
        if step not in self._runs:
            self._runs[step] = self._capture(step)
        rows = [row for span in spans for row in span.rows]
        return self._runs[step]()[torch.tensor(rows, device=self.cache.device)]

    def _step_for(self, spans: Sequence[Span]) -> PaddedStep:
        limit = self.cache.positions
        encoder_length = max(span.encoder_length for span in spans)
        sizes = (
            min(self.cache.rows, 1 << (spans[-1].rows.stop - 1).bit_length()),
            bucket(max(span.position for span in spans) + 1, limit),
            min(limit, -(-encoder_length // ENCODER_BUCKET) * ENCODER_BUCKET),
        )
        if sizes not in self._steps:
            self._steps[sizes] = PaddedStep(self.cache, *sizes)
        return self._steps[sizes]

    def _capture(self, step: PaddedStep) -> Callable[[], Tensor]:
        """Runs the step on whatever it is filled with."""
        if self.cache.device.type != "cuda":
            return lambda: self.model.decode(step.tokens, step)
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(WARM_UP):
                self.model.decode(step.tokens, step)
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            logits = self.model.decode(step.tokens, step)

        def replay() -> Tensor:
            graph.replay()
            return logits

        return replay
