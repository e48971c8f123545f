"""4-bit weights: what is stored, how near it is, and that products are those of the int8 weights it stands for."""

import pytest
import torch
from torch import nn

from florence2.engine.bart import LanguageModel
from florence2.engine.cpu.kernels import layout
from florence2.engine.cuda.backend import CudaBackend
from florence2.engine.engine import Engine
from florence2.engine.int4 import GROUP, Int4Linear, compress, unpack
from florence2.engine.linear import Int8Embedding, as_int8, pack, quantize
from florence2.engine.weights import build_language_model
from florence2_export.language import language_tensors


def int4_layer(inputs: int, outputs: int) -> tuple[Int4Linear, nn.Linear]:
    exact, layer = nn.Linear(inputs, outputs), Int4Linear(inputs, outputs)
    layer.load_state_dict({**compress(exact.weight.data), "bias": exact.bias.data})
    return layer, exact


def restored(layer: Int4Linear) -> torch.Tensor:
    """Return the weights as float32 [O, I]."""
    return unpack(layer.weight, layer.lowest, layer.spacing)[:, : layer.inputs] * layer.scale[:, None]


@torch.inference_mode()
def test_it_takes_four_and_a_half_bits():
    """And a scale for each output."""
    parts = compress(torch.randn(96, 768))
    assert sum(part.nbytes for part in parts.values()) == 96 * 768 * 4.5 / 8 + 96 * 4


@pytest.mark.parametrize("inputs", [1, 31, GROUP, 51, 768])
@torch.inference_mode()
def test_weights_come_back_within_half_a_spacing(inputs):
    """Up to the ends of a group, which may be cut off where that makes its squared error smaller."""
    torch.manual_seed(0)
    weight = torch.randn(40, inputs) * torch.logspace(-6, 6, 40)[:, None]
    layer = Int4Linear(inputs, 40)
    layer.load_state_dict({**compress(weight), "bias": torch.zeros(40)})
    error = (restored(layer) - weight).square().mean(1).sqrt() / weight.square().mean(1).sqrt()
    assert error.max() < 0.1


@torch.inference_mode()
def test_levels_are_exact_where_sixteen_are_enough():
    """Integers of int8 with one spacing in each group, at either end of the range, and rows of zeros."""
    torch.manual_seed(0)
    spacing = torch.tensor([1, 2, 5, 16])
    lowest = torch.tensor([-127, 97, -30, -120])
    codes = torch.cat([torch.arange(16), torch.arange(16)]).expand(4, GROUP)
    weight = torch.cat([lowest[:, None] + spacing[:, None] * codes, torch.full((4, 1), 127)], 1).float()
    weight = torch.cat([weight, torch.zeros(1, GROUP + 1)])
    layer = Int4Linear(GROUP + 1, 5)
    layer.load_state_dict({**compress(weight * 0.5), "bias": torch.zeros(5)})
    torch.testing.assert_close(restored(layer), weight * 0.5, atol=1e-6, rtol=1e-6)


@torch.inference_mode()
def test_the_tried_levels_are_better_than_the_extremes():
    """The search pays: evenly spaced levels between the extremes of each group have a larger error."""
    torch.manual_seed(0)
    weight = torch.randn(64, 256)
    groups = weight.unflatten(1, (-1, GROUP))
    bottom, top = groups.amin(-1, keepdim=True), groups.amax(-1, keepdim=True)
    plain = ((groups - bottom) * 15 / (top - bottom)).round() * (top - bottom) / 15 + bottom
    layer = Int4Linear(256, 64)
    layer.load_state_dict({**compress(weight), "bias": torch.zeros(64)})
    assert (restored(layer) - weight).square().sum() < 0.95 * (plain.flatten(1) - weight).square().sum()


@pytest.mark.parametrize("inputs", [51, 64])
@torch.inference_mode()
def test_products_are_those_of_int8(inputs):
    """In prefill: the same weights and rounded inputs, side by side as for queries, keys and values."""
    torch.manual_seed(0)
    layers = [int4_layer(inputs, outputs)[0] for outputs in (40, 24)]
    plain = [as_int8(layer) for layer in layers]
    x = torch.randn(600, inputs) * torch.logspace(-4, 4, 600)[:, None]
    ours, theirs = pack(*layers)(x), pack(*plain)(x)
    scale = theirs.abs().amax(1, keepdim=True)
    assert ((ours - theirs).abs() / scale).max() < 0.02  # an input may be rounded the other way
    assert torch.equal(pack(*layers)(x[:7]), ours[:7])  # a row does not depend on the others
    assert torch.equal(pack(*layers)(x.view(3, 200, -1)).flatten(0, 1), ours)  # several requests
    assert pack(*layers)(torch.full((1, inputs), torch.nan)).isnan().all()


@torch.inference_mode()
def test_halves_are_multiplied_by_halves():
    """A GPU computes in float16: only the weights are rounded."""
    torch.manual_seed(0)
    layer, _ = int4_layer(64, 40)
    x = torch.randn(5, 64)
    expected = nn.functional.linear(x, restored(layer), layer.bias)
    layer.bias = layer.bias.half()
    torch.testing.assert_close(pack(layer)(x.half()).float(), expected, atol=5e-3, rtol=5e-3)


@torch.inference_mode()
def test_a_table_of_bytes_is_its_own_head():
    """Rows that are looked up are those that are multiplied."""
    torch.manual_seed(0)
    weight = torch.randn(50, 16)
    table = Int8Embedding(50, 16)
    table.weight, table.scale = quantize(weight)
    torch.testing.assert_close(table(torch.arange(50)), weight, atol=0.02, rtol=0)
    x = torch.randn(3, 16)
    assert (pack(table)(x) - x @ weight.T).abs().max() < 0.15


@pytest.mark.parametrize("device", ["cpu", "gpu"])
def test_the_steps_of_a_gpu_score_as_float32_does(config, make_request, device):
    """Between the layers an export for a GPU has float16, and one for a CPU float32."""
    torch.manual_seed(0)
    weights = {f"model.language_model.{name}": tensor for name, tensor in LanguageModel(config).state_dict().items()}
    tensors = language_tensors(weights, "int4", device)
    assert tensors["encoder.layers.0.fc1.weight"].dtype == torch.int8  # prefill gains nothing from 4 bits
    assert tensors["decoder.layers.0.fc1.weight"].dtype == torch.uint8
    model = build_language_model(tensors, config, "int4")
    assert model.dtype == (torch.float32 if device == "cpu" else torch.float16)
    exact = build_language_model(language_tensors(weights), config, "float32")
    rounded, truth = (Engine(CudaBackend(each, config, 4), config) for each in (model, exact))
    requests = [make_request(seed, num_beams=1, max_new_tokens=3) for seed in range(3)]
    for answer, right in zip(rounded.generate(requests), truth.generate(requests), strict=True):
        assert answer.log_probs[1] == pytest.approx(right.log_probs[1], abs=0.1)


def test_the_kernels_have_groups_of_the_same_size():
    """They have a constant of their own, since the process that compiles them does without torch."""
    assert layout.GROUP == GROUP
