"""The compiled step against torch's, its tiles against exact sums, and what must not change a number."""

import itertools
from dataclasses import replace

import numpy as np
import pytest
import torch
from numba import njit

from bench.decode import random_weights
from florence2.config import ModelConfig, TextConfig
from florence2.engine import kernels
from florence2.engine.attention import PaddedStep, Span
from florence2.engine.beam import Constraint, Hypothesis
from florence2.engine.kernels import LANES, PAIRS, QUADS
from florence2.engine.kv_cache import KVCache
from florence2.engine.model import LanguageModel
from florence2_export.language import language_tensors

# No size is a multiple of a vector's: 5 heads of 13, an inner width of 51.
ODD = TextConfig(75, 65, 1, 2, 2, 5, 51, 51, max_positions=45, scale_embedding=True)
SPANS = [
    Span(range(0, 1), 2, 0, 8),
    Span(range(1, 4), 0, 20, 41, moves=[(2, 1), (1, 2)], kept=5),
    Span(range(4, 6), 3, 3, 16, moves=[(4, 5)], kept=0),
    Span(range(8, 13), 1, 44, 45, moves=[(12, 8), (8, 9), (8, 11)], kept=17),
]
TOKENS = list(range(3, 3 + 11))


@pytest.fixture(scope="module")
def odd(config) -> ModelConfig:
    return replace(config, text=ODD)


def build(config: ModelConfig, precision: str, *, compiled: bool = True, threads: int = 2) -> LanguageModel:
    tensors = language_tensors(random_weights(config), precision)
    with torch.device("meta"):
        model = LanguageModel(config, tied="lm_head.weight" not in tensors, precision=precision)
    model.load_state_dict(tensors, assign=True)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        return model.pack(compiled=compiled)
    finally:
        torch.set_num_threads(before)


def filled_cache(model: LanguageModel) -> KVCache:
    """Every row with a past, its beginning shared as `SPANS` says, and every slot with a picture."""
    cache = KVCache(ODD, 13, model.cache_dtype, torch.device("cpu"), compiled=bool(model.compiled))
    torch.manual_seed(1)
    past = torch.randn(2, 2, 13, 5, 45, 13)  # keys and values, layers, rows, heads, positions, size
    for span in SPANS:
        past[:, :, span.rows, :, : span.kept] = past[:, :, span.rows[:1], :, : span.kept]
    cache.self_keys[:], cache.self_values[:, :, :, :45] = cache.laid_out(*past)
    for layer in range(2):
        for slot in range(4):
            cache.write_encoder(layer, slot, *torch.randn(2, 5, 45, 13))
    return cache


class AnyToken:
    """A search that is asked for its last tokens and has no rules."""

    def __init__(self, tokens: list[int]) -> None:
        self.last_tokens = tokens
        self.running = [Hypothesis((), (), 0.0)] * len(tokens)

    def constraints(self) -> list[Constraint]:
        return [Constraint(None, [])] * len(self.last_tokens)


def compiled_logits(model: LanguageModel, spans: list[Span], tokens: list[int], cache: KVCache) -> torch.Tensor:
    left = iter(tokens)
    searches = [AnyToken(list(itertools.islice(left, len(span.rows)))) for span in spans]
    model.compiled.decode(searches, spans, cache, 75)
    return torch.from_numpy(model.compiled.scratch.logits[: len(tokens), :75].copy())


@torch.inference_mode()
def logits(model: LanguageModel, spans: list[Span] = SPANS, tokens: list[int] = TOKENS) -> torch.Tensor:
    cache = filled_cache(model)
    if model.compiled:
        return compiled_logits(model, spans, tokens, cache)
    step = PaddedStep(cache, 13, 45, 45)
    step.fill(tokens, spans)
    return model.decode(step.tokens, step)[[row for span in spans for row in span.rows]]


@pytest.mark.parametrize(("precision", "tolerance"), [("float32", 1e-5), ("bfloat16", 0.02), ("int8", 0.02)])
def test_it_computes_what_torch_does(odd, precision, tolerance):
    """Any width, heads and lengths; the tolerance is of the logits' spread."""
    ours, torchs = (logits(build(odd, precision, compiled=compiled)) for compiled in (True, False))
    assert ours.shape == (11, 75)
    assert (ours - torchs).abs().max() < tolerance * torchs.std()


@pytest.mark.parametrize("precision", ["float32", "bfloat16", "int8"])
def test_nobody_s_numbers_depend_on_neighbours_or_threads(odd, precision):
    """Not in the last bit: alone, among others, with one thread or with as many as there are heads."""
    together = logits(build(odd, precision))
    for threads in (1, 8):
        assert torch.equal(logits(build(odd, precision, threads=threads)), together)
    model, first = build(odd, precision), 0
    for span in SPANS:
        rows = slice(first, first + len(span.rows))
        assert torch.equal(logits(model, [span], TOKENS[rows]), together[rows])
        first = rows.stop


@pytest.mark.parametrize("precision", ["float32", "bfloat16", "int8"])
@torch.inference_mode()
def test_not_a_number_stays_one_and_its_own(odd, precision):
    """The engine tells its caller by it, and nobody else hears of it."""
    model = build(odd, precision)
    healthy = logits(model)
    cache = filled_cache(model)
    cache.cross_values[1, 2] = torch.nan  # the first request's
    found = compiled_logits(model, SPANS, TOKENS, cache)
    assert found[0].isnan().all()
    assert torch.equal(found[1:], healthy[1:])


@pytest.mark.parametrize("vnni", [True, False])
@pytest.mark.parametrize(("rows", "width"), [(1, 1), (1, 4), (6, 4)])
def test_sums_of_bytes_are_exact(monkeypatch, rows, width, vnni):
    """With the CPU's instruction for it, where it has one, and without; up to the largest sums there are."""
    monkeypatch.setattr(kernels, "HAS_VNNI", kernels.HAS_VNNI and vnni)
    multiply = kernels.tile(rows, width)

    @njit
    def run(x, w, sums):
        multiply(x, 1, w, 0, len(w) // width, None, LANES, len(w) // width // LANES, sums, 0, 0)

    random = np.random.default_rng(0)
    x = random.integers(0, 256, (rows + 1, 3072), np.uint8)
    w = random.integers(-127, 128, (width, LANES, 3072), np.int8)
    x[1], w[0, 0], w[0, 1] = 255, 127, -127
    sums = np.zeros((rows, width * LANES), np.float32)
    in_order = w.reshape(width, LANES, -1, QUADS).transpose(0, 2, 1, 3)
    run(x.view(np.int32), np.ascontiguousarray(in_order).view(np.int32).ravel(), sums)
    assert np.array_equal(sums.view(np.int32), x[1:].astype(np.int32) @ w.reshape(-1, 3072).astype(np.int32).T)


@pytest.mark.parametrize("ahead", [None, 64])
@pytest.mark.parametrize(("rows", "width"), [(1, 1), (1, 4), (6, 4)])
def test_sums_of_bfloats_are_right(monkeypatch, rows, width, ahead):
    """As right as sums in float32, and the same to the last bit without the CPU's instruction."""

    def run(x, w, sums):
        multiply = kernels.tile(rows, width)

        @njit
        def call(x, w, sums):
            multiply(x, 1, w, 0, len(w) // width, ahead, LANES, len(w) // width // LANES, sums, 0, 0)

        call(x, w, sums)

    torch.manual_seed(0)
    x, w = torch.randn(rows + 1, 3072).bfloat16(), torch.randn(width, LANES, 3072).bfloat16()
    sums = np.zeros((rows, width * LANES), np.float32)
    in_order = w.reshape(width, LANES, -1, PAIRS).transpose(1, 2).contiguous()
    inputs, weights = x.view(torch.uint32).numpy(), in_order.view(torch.uint32).numpy().ravel()
    run(inputs, weights, sums)
    assert sums == pytest.approx((x[1:].double() @ w.reshape(-1, 3072).double().T).numpy(), abs=1e-3)
    monkeypatch.setattr(kernels, "HAS_BFLOATS", False)
    plain = np.zeros_like(sums)
    run(inputs, weights, plain)
    assert np.array_equal(plain, sums)


@pytest.mark.parametrize("width", [16, 15])
def test_inputs_are_shortened_in_their_own_row(width):
    """The last one's missing neighbour is zero, and nothing behind the row is touched: other threads read there."""
    x, halves = np.ones((1, width), np.float32), np.full((2, 16), 7, np.uint16)
    kernels.shorten(x, halves[:1])
    assert halves[0].tolist() == [0x3F80] * width + [0] * (16 - width)
    assert (halves[1] == 7).all()


def test_the_cache_rounds_as_torch_does():
    """Ties to even numbers; infinity and NaN stay what they are."""

    @njit
    def run(x, y):
        for i in range(len(x)):
            y[i] = kernels.as_element(x[i], y)

    random = np.random.default_rng(0)
    x = random.standard_normal(1000).astype(np.float32)
    x[:6] = 0, np.inf, -np.inf, np.nan, 1 + 2**-8, 1 + 3 * 2**-8
    y = np.zeros(1000, np.uint16)
    run(x, y)
    found, expected = torch.from_numpy(y.view(np.int16)).view(torch.bfloat16), torch.from_numpy(x).bfloat16()
    assert torch.equal(found.nan_to_num(7), expected.nan_to_num(7))
