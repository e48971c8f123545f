"""Attention over the cache, compiled and padded, against torch's over each row's own keys and values."""

import random
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention

from florence2.config import TextConfig, TokenConfig
from florence2.engine.cpu.backend import batch_of
from florence2.engine.cpu.cache import PackedCache
from florence2.engine.cpu.kernels.attention import attend_to_encoder, attend_to_self
from florence2.engine.cpu.kernels.layout import LANES, Scratch
from florence2.engine.cuda.cache import PaddedCache
from florence2.engine.cuda.step import PaddedStep, Shape
from tests.tiny_model import tiny_config
from tests.unit.engine.inputs import Span, step_input
from tests.unit.engine.python_search import Constraint, Hypothesis

TEXT = TextConfig(40, 16, 1, 2, 2, 4, 24, 32, max_positions=300, scale_embedding=False)
CONFIG = replace(tiny_config(), text=TEXT, prompt_tokens=200 - 5)  # slots are shorter than rows, as in large
ROWS, LAYER = 12, 1
CPU = torch.device("cpu")


class AnyToken:
    """A search with these last tokens and no rules."""

    def __init__(self, tokens: list[int]) -> None:
        self.last_tokens = tokens
        self.running = [Hypothesis((), (), 0.0)] * len(tokens)

    def constraints(self) -> list[Constraint]:
        return [Constraint(None, [])] * len(self.last_tokens)


def random_spans(chance: random.Random) -> list[Span]:
    """Return some requests next to each other and some apart, their slots in any order."""
    slots = chance.sample(range(ROWS), ROWS)
    spans, row = [], chance.randrange(3)
    while row < ROWS:
        beams = min(chance.choice([1, 1, 3, 3, 5]), ROWS - row)
        position, encoder_length = chance.choice([0, 5, 63, 64, 200, 299]), chance.choice([70, 70, 71, 200])
        spans.append(Span(range(row, row + beams), slots.pop(), position, encoder_length))
        row += beams + chance.choice([0, 0, 0, 2])
    return spans


TOKENS = TokenConfig(bos=0, pad=1, eos=2, decoder_start=2, first_location=3, known=40)


def expected(queries, keys, values):
    """Return torch's attention: [H, E] over [H, S, E] -> [H, E]."""
    return scaled_dot_product_attention(queries[None, :, None], keys[None], values[None], scale=1.0)[0, :, 0]


def padded_attention(cache, spans, queries, keys, values):
    """Return what each live row gets from itself and from the encoder, [R, H, E] each."""
    places = [row for span in spans for row in span.rows]
    step = PaddedStep(cache, 40, TOKENS, Shape(ROWS, ROWS, beams=8, length=300, encoder_length=200, rules=16))
    step.fill(step_input([AnyToken([0] * len(span.rows)) for span in spans], spans))
    step.inputs.upload()
    step.begin()
    given = torch.randn(3, ROWS, 4, 4)
    given[:, places] = torch.stack([queries, keys, values])
    return step.attend_to_self(LAYER, *given)[places], step.attend_to_encoder(LAYER, given[0])[places]


def compiled_attention(cache, spans, queries, keys, values):
    """Return the same from the kernels; three threads share the heads, one after the other."""
    given = step_input([AnyToken([0] * len(span.rows)) for span in spans], spans)
    arrays, batch, rows = cache.arrays(), batch_of(given), len(queries)
    wide = [torch.nn.functional.pad(part, (0, LANES - 4)).flatten(1).numpy() for part in (queries, keys, values)]
    scratch = Scratch(*[np.zeros(0)] * len(Scratch._fields))._replace(
        projected=np.concatenate(wide, 1),
        attended=np.zeros((rows, 4 * LANES), np.float32),
        scores=np.zeros((3, rows, 320), np.float32),
        moving=np.zeros((3, 1, 1, 1), np.float32),
    )
    answers = []
    for attend in (attend_to_self, attend_to_encoder):
        for thread in range(3):
            attend(thread, 3, LAYER, arrays, batch, scratch)
        answers.append(torch.from_numpy(scratch.attended.copy()).unflatten(1, (4, LANES))[..., :4])
    return answers


@pytest.mark.parametrize("attend", [padded_attention, compiled_attention])
@pytest.mark.parametrize("seed", range(25))
def test_every_row_sees_its_own_past_and_its_request_s_encoder(seed, attend):
    """Whatever its neighbors are, and however long they and it are."""
    torch.manual_seed(seed)
    spans = random_spans(random.Random(seed))
    packed = attend is compiled_attention
    cache = PackedCache(CONFIG, ROWS, torch.float32) if packed else PaddedCache(CONFIG, ROWS, torch.float32, CPU)
    past_keys, past_values = torch.randn(2, ROWS, 4, 300, 4)
    encoder_keys, encoder_values = torch.randn(2, ROWS, 4, 200, 4)
    laid_out = cache.laid_out(past_keys, past_values) if packed else (past_keys, past_values)
    cache.self_keys[LAYER], cache.self_values[LAYER, :, :, :300] = laid_out
    for slot in range(ROWS):
        cache.write_encoder(LAYER, slot, encoder_keys[slot], encoder_values[slot])
    rows = [(span, row) for span in spans for row in span.rows]
    queries, keys, values = torch.randn(3, len(rows), 4, 4)
    to_self, to_encoder = attend(cache, spans, queries, keys, values)
    for i, (span, row) in enumerate(rows):
        assert torch.equal(cache.self_values[LAYER, row, :, span.position, :4], values[i])
        past_keys[row, :, span.position], past_values[row, :, span.position] = keys[i], values[i]
        past = (row, slice(None), slice(span.position + 1))
        torch.testing.assert_close(to_self[i], expected(queries[i], past_keys[past], past_values[past]))
        own = (span.slot, slice(None), slice(span.encoder_length))
        torch.testing.assert_close(to_encoder[i], expected(queries[i], encoder_keys[own], encoder_values[own]))
