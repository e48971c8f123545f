"""Linear layers as a device computes them fastest: packed by oneDNN, with weights of 8 or 4 bits, or as torch has them.

`bart.LanguageModel` is loaded with the layers of `layer_type`, which `pack` then turns into projections.

N rows, I inputs, O outputs.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from florence2.engine.int4 import LEVELS, TINY, Int4Linear, unpack

Projection = Callable[[Tensor], Tensor]
TYPICAL_ROWS = 4  # for which oneDNN chooses the layout of the weights; any other number works too
PREFILL_ROWS = 592  # likewise, of base: its image and a prompt
ZERO_POINT = 128  # of inputs, which are unsigned bytes


class Int8Linear(nn.Module):
    """y = x W^T + b with int8 weights, scaled by output, and inputs that are rounded to int8 row by row.

    Since every row has its own scale, the numbers of a request do not depend on the others in the batch.
    """

    weight: Tensor  # int8 [O, I]
    scale: Tensor  # float32 [O]
    bias: Tensor | None  # float32 [O]

    def __init__(self, inputs: int, outputs: int, bias: bool = True) -> None:
        super().__init__()
        self.register_buffer("weight", torch.empty(outputs, inputs, dtype=torch.int8))
        self.register_buffer("scale", torch.empty(outputs))
        self.register_buffer("bias", torch.empty(outputs) if bias else None)


class Int8Embedding(Int8Linear):
    """A table of int8 rows, each with a scale. It is its own head: the products with all rows."""

    def __init__(self, rows: int, width: int) -> None:
        super().__init__(width, rows, bias=False)
        self.num_embeddings = rows
        self._lookup: Callable[[Tensor], Tensor] | None = None

    def forward(self, tokens: Tensor) -> Tensor:
        """Return rows: [...] -> float32 [..., I]."""
        return (self._lookup(tokens) if self._lookup else self.weight[tokens]) * self.scale[tokens, None]

    def keep_elsewhere(self, lookup: Callable[[Tensor], Tensor]) -> None:
        """Forget the rows, which `lookup` returns from now on: [...] -> int8 [..., I]."""
        self._lookup, self.weight = lookup, self.weight.new_empty(0)


class _WithoutValuesOnMeta(nn.Module):
    """Leaves random initial values out on the meta device, for which torch would import its compiler: 2 s and 73 MB."""

    weight: Tensor

    def reset_parameters(self) -> None:
        if not self.weight.is_meta:
            super().reset_parameters()  # type: ignore[misc]


class FloatLinear(_WithoutValuesOnMeta, nn.Linear):
    """A linear layer of floats."""


class FloatEmbedding(_WithoutValuesOnMeta, nn.Embedding):
    """A table of floats."""


Linear = nn.Linear | Int8Linear | Int4Linear
Table = nn.Embedding | Int8Embedding
LayerType = type[nn.Linear] | type[Int8Linear] | type[Int4Linear]
TableType = type[nn.Embedding] | type[Int8Embedding]
LAYERS: dict[str, LayerType] = {"int8": Int8Linear, "int4": Int4Linear}


def quantize(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Return int8 [O, I] and float32 scales [O] with weight ≈ int8 * scale; weight: float [O, I]."""
    weight = weight.float()
    scale = weight.abs().amax(1).clamp_min(TINY) / LEVELS
    return (weight / scale[:, None]).round().to(torch.int8), scale


def as_int8(layer: Int4Linear) -> Int8Linear:
    """Return the layer that an Int4Linear stands for."""
    same = Int8Linear(layer.inputs, len(layer.weight))
    same.weight = unpack(layer.weight, layer.lowest, layer.spacing)[:, : layer.inputs].contiguous()
    same.scale, same.bias = layer.scale, layer.bias
    return same


def layer_type(precision: str) -> LayerType:
    """Return the class of linear layers of this precision."""
    return LAYERS.get(precision, FloatLinear)


def table_type(precision: str) -> TableType:
    """Return the class of embeddings of this precision."""
    return Int8Embedding if precision == "int4" else FloatEmbedding


def make_head(precision: str, inputs: int, outputs: int) -> Linear:
    """Return a head of this precision that is not the embedding."""
    if precision == "int4":
        return Int8Embedding(outputs, inputs)
    return (Int8Linear if precision == "int8" else FloatLinear)(inputs, outputs, bias=False)


def pack(*layers: Linear | Table) -> Projection:
    """Return one projection for layers of the same inputs, their outputs side by side. A head may be an embedding."""
    weight = _joined([layer.weight for layer in layers])
    biases = [layer.bias for layer in layers if isinstance(layer, Linear) and layer.bias is not None]
    bias = _joined(biases) if biases else None
    int4 = [layer for layer in layers if isinstance(layer, Int4Linear)]
    if int4:
        lowest, spacing, scale = (
            _joined([getattr(each, name) for each in int4]) for name in ("lowest", "spacing", "scale")
        )
        return _unpacked(lambda: unpack(weight, lowest, spacing), scale, bias)
    if isinstance(layers[0], Int8Embedding):
        return _unpacked(lambda: weight, layers[0].scale, bias)
    scales = [layer.scale for layer in layers if isinstance(layer, Int8Linear)]
    if scales:
        scale = _joined(scales)
        in_halves = bias is not None and bias.dtype != torch.float32
        return _unpacked(lambda: weight, scale, bias) if in_halves else _int8(weight, scale, bias)
    on_cpu = weight.device.type == "cpu" and torch.backends.mkldnn.is_available()
    bfloat16 = weight.dtype == torch.bfloat16
    if on_cpu and (weight.dtype == torch.float32 or (bfloat16 and torch.ops.mkldnn._is_mkldnn_bf16_supported())):
        # The operators that torch.compile freezes weights with: base's head takes 7 ms for 3 rows, and 54 without them.
        packed = torch.ops.mkldnn._reorder_linear_weight(weight.contiguous(), TYPICAL_ROWS)
        multiply = torch.ops.mkldnn._linear_pointwise
        return lambda x: multiply(x, packed, bias, "none", [], "")
    return lambda x: nn.functional.linear(x, weight, bias)


def _joined(tensors: Sequence[Tensor]) -> Tensor:
    return tensors[0].data if len(tensors) == 1 else torch.cat([tensor.data for tensor in tensors])


def has_tiles() -> bool:
    """Return whether this CPU multiplies matrices of bytes and of bfloat16 in tiles (AMX)."""
    return bool(torch.cpu._is_amx_tile_supported() and torch.cpu._init_amx())


def _int8(weight: Tensor, weight_scale: Tensor, bias: Tensor | None) -> Projection:
    """Pack for a product of bytes: oneDNN's where the CPU has tiles for it, which halve its time, else FBGEMM's."""
    multiply = (_onednn if has_tiles() else _fbgemm)(weight.contiguous(), weight_scale)
    offset = torch.zeros(1) if bias is None else bias

    def project(x: Tensor) -> Tensor:
        """Return the product: float32 [..., I] -> float32 [..., O]."""
        scale = torch.maximum(x.amax(-1, keepdim=True), -x.amin(-1, keepdim=True)).clamp_min_(TINY)
        return torch.addcmul(offset, multiply(x, scale), scale)

    return project


def _fbgemm(weight: Tensor, weight_scale: Tensor) -> Callable[[Tensor, Tensor], Tensor]:
    """Return what multiplies x / scale, at most 1, rounded to bytes. torch plans to remove these operators."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        zeros = torch.zeros(len(weight), dtype=torch.long)
        quantized = torch._make_per_channel_quantized_tensor(weight, weight_scale.double(), zeros, 0)
        packed = torch.ops.quantized.linear_prepack(quantized, None)
    multiply = torch.ops.quantized.linear_with_input_q_dq_qweight_dq_output_fp32
    return lambda x, scale: multiply(x / scale, 1 / LEVELS, ZERO_POINT, packed)


def _onednn(weight: Tensor, weight_scale: Tensor) -> Callable[[Tensor, Tensor], Tensor]:
    """Return the same by the operator of torch.compile's int8 models. Few numbers round to another level."""
    packed = torch.ops.onednn.qlinear_prepack(weight, [PREFILL_ROWS, weight.shape[1]])
    zeros = torch.zeros(len(weight), dtype=torch.int32)
    multiply, zero_point = torch.ops.onednn.qlinear_pointwise, torch.tensor(float(ZERO_POINT))
    output: tuple[object, ...] = (1.0, 0, torch.float32, "none", [], "")

    def product(x: Tensor, scale: Tensor) -> Tensor:
        levels = torch.addcmul(zero_point, x, LEVELS / scale).round_().to(torch.uint8).flatten(0, -2)
        sums: Tensor = multiply(levels, 1 / LEVELS, ZERO_POINT, packed, weight_scale, zeros, None, *output)
        return sums.unflatten(0, x.shape[:-1])

    return product


def _unpacked(weight_of: Callable[[], Tensor], weight_scale: Tensor, bias: Tensor | None) -> Projection:
    """Make int8 weights for each product, so that they take no memory in between.

    Inputs in float32 are rounded as by `_int8`. float16, which a GPU computes with, multiplies weights in float16.
    """

    def project(x: Tensor) -> Tensor:
        """Return the product: [..., I] -> [..., O], in the type of x."""
        weight = weight_of()
        if x.dtype != torch.float32:
            exact = weight[:, : x.shape[-1]].to(x.dtype).mul_(weight_scale[:, None])
            return nn.functional.linear(x, exact, bias)
        scale = x.abs().amax(-1, keepdim=True).clamp_min_(TINY)
        rounded = (x * (LEVELS / scale)).round().to(torch.int8)
        whole = nn.functional.pad(rounded, (0, weight.shape[1] - x.shape[-1]))
        sums = torch._int_mm(whole.flatten(0, -2), weight.T).view(*x.shape[:-1], -1)
        return torch.addcmul(bias if bias is not None else torch.zeros(1), sums * weight_scale, scale / LEVELS)

    return project
