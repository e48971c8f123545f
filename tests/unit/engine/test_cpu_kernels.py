"""Each stage of the compiled step against torch; attention has its own tests, and so has the choice of tokens.

R rows, I inputs and O outputs of a linear layer.
"""

import threading

import numpy as np
import pytest
import torch
from numba import njit
from torch import nn
from torch.nn import functional as F

from florence2.engine.cpu.kernels import tiles
from florence2.engine.cpu.kernels.layout import BLOCK, BLOCK_BYTES, LANES, PAIRS, QUADS, Batch, Embedding, Norm, Scratch
from florence2.engine.cpu.kernels.pointwise import add, embed, gelu, layer_norm, softmax
from florence2.engine.cpu.kernels.products import multiply, shorten
from florence2.engine.cpu.kernels.threads import wait
from florence2.engine.cpu.kernels.vectors import as_element
from florence2.engine.cpu.packing import _blocks, _product, _stacked, as_array
from florence2.engine.int4 import GROUP, Int4Linear, compress, unpack
from florence2.engine.linear import Int8Embedding, Int8Linear, as_int8, quantize

ROWS = 7


def zeros(kind: type, **arrays):
    """Return a named tuple whose other arrays are empty."""
    return kind(*[np.zeros(0, np.float32)] * len(kind._fields))._replace(**arrays)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_embedding_adds_positions_to_scaled_tokens(dtype):
    """The tables may have either type."""
    torch.manual_seed(0)
    tokens, positions = torch.randn(30, 19).to(dtype), torch.randn(10, 19).to(dtype)
    embedding = Embedding(as_array(tokens), as_array(positions), np.float32(2.5), zeros(Norm), 30)
    batch = zeros(Batch, tokens=np.array([3, 29, 3]), positions=np.array([0, 9, 1]))
    x = np.zeros((3, 19), np.float32)
    embed(batch, embedding, x)
    expected = tokens[[3, 29, 3]].float() * 2.5 + positions[[0, 9, 1]].float()
    torch.testing.assert_close(torch.from_numpy(x), expected)


def test_embedding_from_the_packed_head():
    """A table of int8 rows is kept once, in the order that products need."""
    torch.manual_seed(0)
    table = Int8Embedding(30, 19)
    table.weight, table.scale = quantize(torch.randn(30, 19))
    tokens, positions = np.array([3, 29, 3]), np.zeros((1, 19), np.float32)
    embedding = Embedding(_product(_stacked([table])), positions, np.float32(2.5), zeros(Norm), 30)
    x = np.zeros((3, 19), np.float32)
    embed(zeros(Batch, tokens=tokens, positions=np.zeros(3, np.int64)), embedding, x)
    torch.testing.assert_close(torch.from_numpy(x), table(torch.from_numpy(tokens)) * 2.5)


def test_layer_norm_after_a_sum():
    """The same as torch's, with the parameters of the second of two layers."""
    torch.manual_seed(0)
    x, change, weight, bias = torch.randn(ROWS, 19) * 5, torch.randn(ROWS, 32), torch.randn(2, 19), torch.randn(2, 19)
    expected = F.layer_norm(x + change[:, :19], (19,), weight[1], bias[1])
    ours = x.numpy()
    add(ours, change.numpy())
    layer_norm(ours, Norm(weight.numpy(), bias.numpy()), 1)
    torch.testing.assert_close(torch.from_numpy(ours), expected)


@pytest.mark.parametrize("threads", [1, 3])
def test_gelu_is_that_of_torch(threads):
    """The range is that in which it is neither 0 nor x. Threads share the columns."""
    x = torch.linspace(-12, 12, ROWS * 9 * LANES).view(ROWS, 9 * LANES)
    ours = x.numpy().copy()
    for thread in range(threads):
        gelu(thread, threads, ours)
    torch.testing.assert_close(torch.from_numpy(ours), F.gelu(x), atol=3e-6, rtol=1e-6)


@pytest.mark.parametrize("length", [1, 15, 16, 45])
def test_softmax_is_that_of_torch(length):
    """It covers the first scores. What follows them stays as it is."""
    torch.manual_seed(0)
    scores = torch.randn(ROWS, 48) * 20
    ours = scores.numpy().copy()
    softmax(ours, length)
    torch.testing.assert_close(torch.from_numpy(ours[:, :length]), scores[:, :length].softmax(-1))
    assert np.array_equal(ours[:, length:], scores[:, length:].numpy())


def linear(precision: str, inputs: int, outputs: int) -> nn.Module:
    layer = nn.Linear(inputs, outputs)
    if precision == "int8":
        rounded = Int8Linear(inputs, outputs)
        (rounded.weight, rounded.scale), rounded.bias = quantize(layer.weight.data), layer.bias.data
        return rounded
    if precision == "int4":
        rounded = Int4Linear(inputs, outputs)
        rounded.load_state_dict({**compress(layer.weight.data), "bias": layer.bias.data})
        return rounded
    return layer.to(getattr(torch, precision))


@pytest.mark.parametrize(
    ("precision", "tolerance"), [("float32", 1e-5), ("bfloat16", 0.02), ("int8", 0.04), ("int4", 0.04)]
)
@pytest.mark.parametrize("rows", [1, 2, 3, 4, 5, 6, ROWS])
@torch.inference_mode()
def test_packed_products_are_those_of_torch(precision, tolerance, rows):
    """Two layers packed together give what torch gives, whatever the numbers of rows, inputs, outputs and threads."""
    torch.manual_seed(0)
    layers = [linear(precision, 51, 77) for _ in range(2)]
    product = _product(_stacked(layers, factor=0.5))
    scratch = zeros(Scratch, inputs=np.zeros((3, rows, 64), np.uint16), row_scales=np.zeros((3, rows), np.float32))
    x, y = torch.randn(rows, 51), np.zeros((rows, 80), np.float32)
    for thread in range(3):
        multiply(thread, 3, product, 1, x.numpy(), scratch, y)
    layer = as_int8(layers[1]) if precision == "int4" else layers[1]
    weight = layer.weight.float() * (layer.scale[:, None] if isinstance(layer, Int8Linear) else 1)
    expected = 0.5 * F.linear(x, weight, layers[1].bias.float())
    assert (torch.from_numpy(y[:, :77]) - expected).abs().max() < tolerance * expected.std()
    assert not y[:, 77:].any()


def test_threads_wait_for_each_other():
    """After each barrier every thread sees what all others wrote before it."""
    threads, stages = 3, 200
    arrived, written = np.zeros(1, np.int64), np.zeros(threads, np.int64)
    missed = []

    def run(thread: int) -> None:
        done = 0
        for stage in range(1, stages + 1):
            written[thread] = stage
            done = wait(arrived, done, threads)
            if written.min() < stage:
                missed.append((thread, stage))
            done = wait(arrived, done, threads)

    runs = [threading.Thread(target=run, args=(thread,)) for thread in range(threads)]
    for each in runs:
        each.start()
    for each in runs:
        each.join()
    assert not missed and arrived[0] == 2 * stages * threads


@pytest.mark.parametrize("vnni", [True, False])
@pytest.mark.parametrize(("rows", "width"), [(1, 1), (1, 4), (6, 4)])
def test_sums_of_bytes_are_exact(monkeypatch, rows, width, vnni):
    """With the CPU's instruction for it, where it has one, and without; up to the largest possible sums."""
    monkeypatch.setattr(tiles, "HAS_VNNI", tiles.HAS_VNNI and vnni)
    multiply = tiles.tile(rows, width)

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


@pytest.mark.parametrize("vnni", [True, False])
@pytest.mark.parametrize(("rows", "width"), [(1, 1), (6, 4)])
def test_sums_of_int4_weights_are_those_of_the_int8_weights_they_stand_for(monkeypatch, rows, width, vnni):
    """They are exact, with and without the CPU's instruction, and for levels at either end of int8."""
    monkeypatch.setattr(tiles, "HAS_VNNI", tiles.HAS_VNNI and vnni)
    multiply = tiles.tile(rows, width)

    @njit
    def run(x, w, steps, sums):
        multiply(x, 1, w, 0, len(w) // width, BLOCK_BYTES, BLOCK_BYTES, steps, sums, 0, 0)

    torch.manual_seed(0)
    outputs, inputs = width * LANES, 320
    codes = torch.randint(256, (outputs, inputs // 2), dtype=torch.uint8)
    lowest = torch.randint(-128, -9, (outputs, inputs // GROUP), dtype=torch.int8)
    spacing = torch.randint(1, 10, lowest.shape, dtype=torch.uint8)
    codes[:2], lowest[:2], spacing[:2] = torch.tensor([[0xFF], [0x00]]), -128, 17
    x = np.random.default_rng(0).integers(0, 256, (rows + 1, inputs), np.uint8)
    blocks = _blocks(codes, lowest, spacing).numpy()
    sums = np.zeros((rows, outputs), np.float32)
    run(x.view(np.int32), blocks, inputs // BLOCK, sums)
    expected = x[1:].astype(np.int32) @ unpack(codes, lowest, spacing).numpy().T.astype(np.int32)
    assert np.array_equal(sums.view(np.int32), expected)


@pytest.mark.parametrize("ahead", [None, 64])
@pytest.mark.parametrize(("rows", "width"), [(1, 1), (1, 4), (6, 4)])
def test_sums_of_bfloats_are_right(monkeypatch, rows, width, ahead):
    """They are as exact as sums in float32, and the same to the last bit without the CPU's instruction."""

    def run(x, w, sums):
        multiply = tiles.tile(rows, width)

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
    monkeypatch.setattr(tiles, "HAS_BFLOATS", False)
    plain = np.zeros_like(sums)
    run(inputs, weights, plain)
    assert np.array_equal(plain, sums)


@pytest.mark.parametrize("width", [16, 15])
def test_inputs_are_shortened_in_their_own_row(width):
    """An odd one out is paired with zero, and what follows the row is not touched: other threads read there."""
    x, halves = np.ones((1, width), np.float32), np.full((2, 16), 7, np.uint16)
    shorten(x, halves[:1])
    assert halves[0].tolist() == [0x3F80] * width + [0] * (16 - width)
    assert (halves[1] == 7).all()


def test_the_cache_rounds_as_torch_does():
    """Ties to even numbers; infinity and NaN stay what they are."""

    @njit
    def run(x, y):
        for i in range(len(x)):
            y[i] = as_element(x[i], y)

    random = np.random.default_rng(0)
    x = random.standard_normal(1000).astype(np.float32)
    x[:6] = 0, np.inf, -np.inf, np.nan, 1 + 2**-8, 1 + 3 * 2**-8
    y = np.zeros(1000, np.uint16)
    run(x, y)
    found, expected = torch.from_numpy(y.view(np.int16)).view(torch.bfloat16), torch.from_numpy(x).bfloat16()
    assert torch.equal(found.nan_to_num(7), expected.nan_to_num(7))
