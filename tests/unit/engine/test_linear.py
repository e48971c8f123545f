"""Packed layers compute what the layers they were made of do; int8 row by row."""

import pytest
import torch
from torch import nn

from florence2.engine import linear
from florence2.engine.linear import Int8Linear, pack, quantize


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("rows", [1, 3, 24, 600])
@torch.inference_mode()
def test_packed_layers_compute_the_same(dtype, rows):
    """Several of the same inputs, side by side."""
    torch.manual_seed(0)
    layers = [nn.Linear(48, outputs).to(dtype) for outputs in (48, 32)]
    x = torch.randn(rows, 48).to(dtype)
    expected = torch.cat([layer(x) for layer in layers], -1)
    tolerance = 1e-5 if dtype == torch.float32 else 2e-2
    torch.testing.assert_close(pack(*layers)(x), expected, atol=tolerance, rtol=tolerance)


@torch.inference_mode()
def test_an_embedding_is_packed_as_the_head():
    """Logits are products with its rows."""
    table = nn.Embedding(50, 16)
    x = torch.randn(2, 16)
    torch.testing.assert_close(pack(table)(x), x @ table.weight.T)


def int8_layer(inputs: int, outputs: int) -> tuple[Int8Linear, nn.Linear]:
    exact = nn.Linear(inputs, outputs)
    layer = Int8Linear(inputs, outputs)
    layer.weight, layer.scale = quantize(exact.weight)
    layer.bias = exact.bias.data
    return layer, exact


@torch.inference_mode()
def test_int8_rounds_weights_and_inputs_and_nothing_else():
    """The reference: both rounded to 127 levels of their row's largest value, multiplied in float64."""
    torch.manual_seed(0)
    layer, _ = int8_layer(64, 40)
    x = torch.randn(5, 64) * torch.tensor([[1e-4], [1.0], [1e4], [3.0], [0.0]])
    largest = x.abs().amax(-1, keepdim=True).clamp_min(1e-30)
    rounded = (x / largest * 127).round().double() * largest / 127
    expected = rounded @ (layer.weight.double() * layer.scale[:, None].double()).T + layer.bias
    torch.testing.assert_close(pack(layer)(x), expected.float(), rtol=1e-4, atol=1e-5)


@torch.inference_mode()
def test_both_products_of_bytes_give_the_same_numbers():
    """Except where a number lies so near the middle of two levels that float32 decides."""
    torch.manual_seed(0)
    layer, _ = int8_layer(768, 96)
    x, scale = torch.randn(2, 300, 768), torch.full((2, 300, 1), 6.0)
    one, other = (make(layer.weight, layer.scale)(x, scale) for make in (linear._fbgemm, linear._onednn))
    differ = (one - other).abs() > 1e-5
    assert differ.float().mean() < 0.05
    torch.testing.assert_close(one, other, rtol=0, atol=3 * float(layer.scale.max()))


@torch.inference_mode()
def test_int8_rows_do_not_depend_on_their_neighbors():
    """A row next to huge numbers gets exactly the same result."""
    torch.manual_seed(0)
    project = pack(int8_layer(64, 40)[0])
    x = torch.randn(1, 64)
    assert torch.equal(project(x), project(torch.cat([x, torch.full((3, 64), 1e6)]))[:1])


@torch.inference_mode()
def test_int8_is_close_to_the_exact_layer():
    """Within a hundredth of the outputs' spread."""
    torch.manual_seed(0)
    layer, exact = int8_layer(768, 768)
    x = torch.randn(50, 768)
    error = (pack(layer)(x) - exact(x)).std() / exact(x).std()
    assert error < 0.015


@torch.inference_mode()
def test_nan_stays_nan():
    """The engine recognizes a broken request by it."""
    project = pack(int8_layer(16, 8)[0])
    assert project(torch.full((1, 16), torch.nan)).isnan().all()
