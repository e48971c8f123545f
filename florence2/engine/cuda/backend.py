"""The backend for CUDA: one padded step for every shape, captured as a graph and replayed.

A step of base is about 600 small kernels, and launching them one by one would take longer than running them. On a CPU,
in tests, the same steps run without graphs.
"""

from __future__ import annotations

import contextlib
import logging
import sys
from collections.abc import Callable, Generator, Iterator, Sequence
from typing import Any

import torch

from florence2.config import ModelConfig
from florence2.engine.backend import NO_DRAW, Backend, Candidates, DeviceLost, StepInput, cache_bytes
from florence2.engine.bart import LanguageModel, Prefill, TextEncoder
from florence2.engine.cuda.cache import PaddedCache
from florence2.engine.cuda.memory import memory_of_graphs, memory_of_prefill, memory_of_steps
from florence2.engine.cuda.step import PaddedDecoder, PaddedStep, Shape

ENCODER_BUCKET = 64  # positions: base's images and usual prompts have 580 to 640
MINIMUM_ROWS = 8  # and slots: fewer are hardly faster
MINIMUM_LENGTH = 64  # decoder positions
MINIMUM_RULES = 16  # tokens that a rule names for one row
PREFILL_BATCH = 32  # requests that are encoded together: as many as 96 rows hold with 3 beams
HIGH_PRIORITY = -1  # of a stream; 0 is the default, and lower numbers come first
GRAPHS = 64  # at most, so that their memory can be counted; those of short answers are about ten
WARM_UP = 2  # runs before a capture, in which libraries allocate what a graph may not
# How long another thread may keep the interpreter. Python's default, 5 ms, is longer than a step.
SWITCH_SECONDS = 0.0005

log = logging.getLogger(__name__)


class CudaBackend(Backend):
    """Decode with one graph for each shape: the usual ones are captured at once, others when they are first needed.

    At most GRAPHS are kept; the one that was not used for longest makes room for another.
    Rows, slots, beams, decoder positions and tokens of rules come in powers of two, encoder positions in multiples of
    ENCODER_BUCKET. cuBLAS may choose other kernels for other numbers of rows, so on a GPU the last bits of a request's
    numbers can depend on how many others there are.
    """

    prefill_batch = PREFILL_BATCH

    def __init__(self, model: LanguageModel, config: ModelConfig, rows: int) -> None:
        dtype = self.cache_dtype(model)
        self.rows, self.cache_bytes = rows, cache_bytes(config, dtype)
        self.cache = PaddedCache(config, rows, dtype, model.device)
        self._tokens = config.tokens
        self._encoder = TextEncoder(model)
        self.decoder = PaddedDecoder(model)
        self._steps: dict[Shape, PaddedStep] = {}
        self._runs: dict[PaddedStep, Callable[[], None]] = {}
        self._stream: torch.cuda.Stream | None = None  # of all steps and captures: a pool's memory belongs to a stream
        self._pool: Any = None  # torch.cuda.graph_pool_handle
        if model.device.type == "cuda":
            sys.setswitchinterval(SWITCH_SECONDS)
            # Under MPS the GPU prefers a step's kernels to the vision encoder's (docs/gpu.md).
            self._stream = torch.cuda.Stream(model.device, priority=HIGH_PRIORITY)
            self._pool = torch.cuda.graph_pool_handle()
            with torch.inference_mode():
                self._capture_usual_shapes(config)

    @classmethod
    def cache_dtype(cls, model: LanguageModel) -> torch.dtype:
        return model.dtype

    @classmethod
    def memory_bytes(cls, model: LanguageModel, config: ModelConfig, rows: int) -> int:
        return (
            super().memory_bytes(model, config, rows)
            + memory_of_steps(config, rows, model.dtype)
            + memory_of_graphs(config, GRAPHS)
            + memory_of_prefill(config, min(rows, PREFILL_BATCH), model.dtype)
        )

    def prefill(self, requests: Sequence[Prefill]) -> Generator[None, None, list[bool]]:
        return self._encoder.prefill(requests, self.cache.write_encoder)

    def step(self, step_input: StepInput) -> list[Candidates]:
        with self._on_stream():
            step = self.filled_step(step_input)
            step.inputs.upload()
            run = self._runs.pop(step, None)
            if run is None:
                self._make_room()
                run = self._capture(step)
                step.inputs.upload()  # the warm-up ran without moves
            self._runs[step] = run  # as the one that was used last
            run()
            return step.candidates(step_input.layout.groups)

    def clear(self, rows: range) -> None:
        self.cache.clear(rows)

    def check_device(self) -> None:
        if self.cache.device.type == "cuda":
            try:
                torch.cuda.synchronize(self.cache.device)
            except RuntimeError as error:
                raise DeviceLost(f"{self.cache.device} fails on everything") from error

    def filled_step(self, given: StepInput) -> PaddedStep:
        """Return the smallest step that holds these requests, filled with them but not uploaded."""
        limit, layout = self.cache.positions, given.layout
        step = self._step_of(
            Shape(
                rows=_bucket(int(layout.rows[-1]) + 1, self.rows, MINIMUM_ROWS),
                slots=_bucket(int(layout.slots.max()) + 1, self.rows, MINIMUM_ROWS),
                beams=_bucket(max(group.beams for group in layout.groups), self.rows),
                length=_bucket(int(given.positions.max()) + 1, limit, MINIMUM_LENGTH),
                encoder_length=self._encoder_bucket(int(layout.encoder_lengths.max())),
                rules=_bucket(max(given.banned.most(), given.penalized.most()), limit + 1, MINIMUM_RULES),
                samples=bool((given.draws != NO_DRAW).any()),
            )
        )
        step.fill(given)
        return step

    def _step_of(self, shape: Shape) -> PaddedStep:
        if shape not in self._steps:
            self._steps[shape] = PaddedStep(self.cache, self.decoder.vocabulary, self._tokens, shape)
        return self._steps[shape]

    def _make_room(self) -> None:
        """Forget the graph that was not used for longest if there are as many as the budget counts."""
        if len(self._runs) >= GRAPHS:
            oldest = next(iter(self._runs))
            del self._runs[oldest], self._steps[oldest.shape]

    def _encoder_bucket(self, length: int) -> int:
        return min(self.cache.encoder_positions, -(-length // ENCODER_BUCKET) * ENCODER_BUCKET)

    @contextlib.contextmanager
    def _on_stream(self) -> Iterator[None]:
        """Make the cache's device the current one, since each thread begins with device 0, and our stream on it.

        The stream first waits for what is under way on the thread's own, which prefill uses.
        """
        if self._stream is None:
            yield
            return
        with torch.cuda.device(self.cache.device):
            self._stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(self._stream):
                yield

    def _capture_usual_shapes(self, config: ModelConfig) -> None:
        """Capture short answers to short prompts, from the largest step down, so that all share its memory."""
        encoder_length = self._encoder_bucket(config.image.tokens + ENCODER_BUCKET // 2)
        powers = range(self.rows.bit_length() + 1)
        for rows in sorted({_bucket(1 << power, self.rows, MINIMUM_ROWS) for power in powers}, reverse=True):
            for beams in {1, config.generation.num_beams}:
                slots = _bucket(max(1, rows // beams), self.rows, MINIMUM_ROWS)
                width = _bucket(beams, self.rows)
                step = self._step_of(Shape(rows, slots, width, MINIMUM_LENGTH, encoder_length, MINIMUM_RULES))
                with self._on_stream():
                    step.inputs.upload()
                    self._runs[step] = self._capture(step)

    def _capture(self, step: PaddedStep) -> Callable[[], None]:
        """Return a call that runs the step on what was uploaded."""

        def run() -> None:
            step.choose(self.decoder.decode(step))

        if self.cache.device.type != "cuda":
            return run
        parents = step.inputs.device["parents"]
        parents.copy_(torch.arange(len(parents)))  # moving beams twice is not moving them once
        own = torch.cuda.current_stream()
        try:
            return self._captured(run)
        except RuntimeError:
            log.exception("a step could not be captured as a graph; it runs without one, which is slower")
            torch.cuda.set_stream(own)  # or the thread would stay on the capture's stream
            self.check_device()
            return run

    def _captured(self, run: Callable[[], None]) -> Callable[[], None]:
        for _ in range(WARM_UP):
            run()
        graph = torch.cuda.CUDAGraph()
        # thread_local: other threads may call CUDA meanwhile, as torch's and Triton's own do.
        with torch.cuda.graph(graph, pool=self._pool, stream=self._stream, capture_error_mode="thread_local"):
            run()
        return graph.replay


def _bucket(count: int, limit: int, least: int = 1) -> int:
    """Return the next power of two, at least `least` and at most `limit`."""
    return min(limit, max(least, 1 << max(0, count - 1).bit_length()))
