"""The compiled step against the padded one, and what must not change a number."""

import itertools
from collections.abc import Sequence
from dataclasses import replace

import psutil
import pytest
import torch

from bench.decode import random_weights
from florence2.config import ModelConfig, TextConfig
from florence2.engine.backend import Backend
from florence2.engine.cpu.backend import CpuBackend
from florence2.engine.cpu.cache import PackedCache
from florence2.engine.cuda.backend import CudaBackend
from florence2.engine.weights import build_language_model
from florence2_export.language import language_tensors
from florence2_export.layouts import EMBEDDING, HEAD
from tests.tiny_model import tiny_config
from tests.unit.engine.inputs import Span, step_input
from tests.unit.engine.test_attention import AnyToken

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
    return replace(config, text=ODD, tokens=replace(config.tokens, known=75))


def build(
    config: ModelConfig,
    precision: str,
    *,
    backend: type[Backend] = CpuBackend,
    threads: int = 2,
    untied: Sequence[str] = (),
) -> CpuBackend | CudaBackend:
    """Return a backend with 13 rows that share what `SPANS` says, and with an image in each slot."""
    weights = random_weights(config)
    weights |= {name: weights[EMBEDDING].flip(0) * 1.5 for name in untied}
    model = build_language_model(language_tensors(weights, precision), config, precision)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        made = backend(model, config, 13)
    finally:
        torch.set_num_threads(before)
    torch.manual_seed(1)
    past = torch.randn(2, 2, 13, 5, 45, 13)  # keys and values, layers, rows, heads, positions, size
    for span in SPANS:
        past[:, :, span.rows, :, : span.kept] = past[:, :, span.rows[:1], :, : span.kept]
    cache = made.cache
    keys, values = cache.laid_out(*past) if isinstance(cache, PackedCache) else past
    cache.self_keys[:], cache.self_values[:, :, :, :45] = keys, values
    for layer in range(2):
        for slot in range(4):
            cache.write_encoder(layer, slot, *torch.randn(2, 5, 45, 13))
    return made


@torch.inference_mode()
def logits(backend: CpuBackend | CudaBackend, spans: list[Span] = SPANS, tokens: list[int] = TOKENS) -> torch.Tensor:
    left = iter(tokens)
    given = step_input([AnyToken(list(itertools.islice(left, len(span.rows)))) for span in spans], spans)
    if isinstance(backend, CudaBackend):
        step = backend.filled_step(given)
        step.inputs.upload()
        return backend.decoder.decode(step)[[row for span in spans for row in span.rows]]
    backend.step(given)
    return torch.from_numpy(backend.scratch.logits[: len(tokens), :75].copy())


@pytest.mark.parametrize(
    ("precision", "tolerance"), [("float32", 1e-5), ("bfloat16", 0.02), ("int8", 0.02), ("int4", 0.02)]
)
def test_it_computes_what_torch_does(odd, precision, tolerance):
    """Any width, heads and lengths; the tolerance is relative to the spread of the logits."""
    ours, torchs = (logits(build(odd, precision, backend=backend)) for backend in (CpuBackend, CudaBackend))
    assert ours.shape == (11, 75)
    assert (ours - torchs).abs().max() < tolerance * torchs.std()


@pytest.mark.parametrize("untied", [[HEAD], [EMBEDDING.replace("shared", "decoder.embed_tokens")]])
def test_an_untied_embedding_is_not_read_from_the_head(odd, untied):
    """The decoder's embedding is read from the head's packed rows only where both are the same."""
    ours, torchs = (logits(build(odd, "int4", backend=each, untied=untied)) for each in (CpuBackend, CudaBackend))
    assert (ours - torchs).abs().max() < 0.02 * torchs.std()
    assert (ours - logits(build(odd, "int4"))).abs().max() > torchs.std()


@pytest.mark.parametrize("precision", ["float32", "bfloat16", "int8", "int4"])
def test_numbers_do_not_depend_on_neighbors_or_threads(odd, precision):
    """They are equal to the last bit: in a batch or not, with one thread or with as many as there are heads."""
    together = logits(build(odd, precision))
    for threads in (1, 8):
        assert torch.equal(logits(build(odd, precision, threads=threads)), together)
    first = 0
    for span in SPANS:
        rows = slice(first, first + len(span.rows))
        assert torch.equal(logits(build(odd, precision), [span], TOKENS[rows]), together[rows])
        first = rows.stop


@pytest.mark.parametrize("precision", ["float32", "bfloat16", "int8", "int4"])
def test_nan_stays_within_its_request(odd, precision):
    """The engine recognizes a broken request by it, and no other request may be affected."""
    healthy = logits(build(odd, precision))
    backend = build(odd, precision)
    backend.cache.cross_values[1, 2] = torch.nan  # the first request's
    found = logits(backend)
    assert found[0].isnan().all()
    assert torch.equal(found[1:], healthy[1:])


def test_positions_that_no_request_reached_take_no_memory():
    """The large model's 4096 positions would take 8 GiB, of which eight captions use a thirtieth."""
    text = replace(ODD, decoder_layers=4, d_model=64 * 16, decoder_heads=16, max_positions=4096)
    config = replace(tiny_config(), text=text, prompt_tokens=1019)
    process = psutil.Process()
    before = process.memory_info().rss
    cache = PackedCache(config, 4, torch.bfloat16)
    assert process.memory_info().rss - before < 2**20
    written = torch.ones(2, 16, 600, 64, dtype=torch.bfloat16)
    for layer in range(4):
        cache.write_encoder(layer, 0, *written)
    assert process.memory_info().rss - before < 3 * 4 * written.nbytes
    assert cache.cross_values.shape[3] == 1024
    assert not cache.cross_values[:, 0, :, 600:].any() and cache.cross_values[:, 0, :, :600].all()
