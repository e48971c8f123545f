"""Linear layers as a device computes them fastest: packed by oneDNN, with int8 weights, or as torch has them.

`bart.LanguageModel` is loaded with the layers of `layer_type`, which `pack` then turns into projections.

N rows, I inputs, O outputs.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

Projection = Callable[[Tensor], Tensor]
TYPICAL_ROWS = 4  # for which oneDNN chooses the layout of the weights; any other number works too
LEVELS = 127  # of int8 on either side of zero
ZERO_POINT = 128  # of inputs, which are unsigned bytes
TINY = 1e-30  # the scale of a row of zeros


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


Linear = nn.Linear | Int8Linear
LayerType = type[nn.Linear] | type[Int8Linear]


def quantize(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Return int8 [O, I] and float32 scales [O] with weight ≈ int8 * scale; weight: float [O, I]."""
    weight = weight.float()
    scale = weight.abs().amax(1).clamp_min(TINY) / LEVELS
    return (weight / scale[:, None]).round().to(torch.int8), scale


def layer_type(precision: str) -> LayerType:
    """Return the class of linear layers of this precision."""
    return Int8Linear if precision == "int8" else nn.Linear


def pack(*layers: Linear | nn.Embedding) -> Projection:
    """Return one projection for layers of the same inputs, their outputs side by side. A head may be an embedding."""
    weight = _joined([layer.weight for layer in layers])
    biases = [layer.bias for layer in layers if isinstance(layer, Linear) and layer.bias is not None]
    bias = _joined(biases) if biases else None
    scales = [layer.scale for layer in layers if isinstance(layer, Int8Linear)]
    if scales:
        return _int8(weight, _joined(scales), bias)
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


def _int8(weight: Tensor, weight_scale: Tensor, bias: Tensor | None) -> Projection:
    """Pack with FBGEMM's product of bytes.

    torch plans to remove these operators. Its onednn.qlinear_pointwise does the same, but takes 1.5 times as long for
    up to three rows.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        zeros = torch.zeros(len(weight), dtype=torch.long)
        quantized = torch._make_per_channel_quantized_tensor(weight.contiguous(), weight_scale.double(), zeros, 0)
        packed = torch.ops.quantized.linear_prepack(quantized, None)
    offset = torch.zeros(1) if bias is None else bias
    multiply = torch.ops.quantized.linear_with_input_q_dq_qweight_dq_output_fp32

    def project(x: Tensor) -> Tensor:
        """Return the product: float32 [N, I] -> float32 [N, O]."""
        scale = x.abs().amax(-1, keepdim=True).clamp_min_(TINY)
        sums: Tensor = multiply(x / scale, 1 / LEVELS, ZERO_POINT, packed)
        return torch.addcmul(offset, sums, scale)

    return project
