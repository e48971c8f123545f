"""From the decoder's layers, as they were loaded, to the weights that the kernels read.

O outputs, I inputs of a linear layer.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from florence2.engine.bart import LanguageModel
from florence2.engine.cpu.kernels.layout import (
    BLOCK,
    LANES,
    PAIRS,
    QUADS,
    ZERO_POINT,
    Embedding,
    Norm,
    Product,
    Weights,
)
from florence2.engine.int4 import GROUP, Int4Linear, codes_of, unpack
from florence2.engine.linear import Int8Embedding, Int8Linear, as_int8

Arrange = Callable[[Tensor, int], Tensor]  # pads a weight along an axis


def pack_decoder(model: LanguageModel) -> Weights:
    """Return the decoder's weights; takes the model's decoder layers and its head."""
    layers = list(model.decoder.take_layers())
    own, cross = [layer.self_attn for layer in layers], [layer.encoder_attn for layer in layers]
    scale = own[0].scale

    def heads(tensor: Tensor, axis: int) -> Tensor:
        """Pad each head to whole vectors."""
        by_head = tensor.unflatten(axis, (own[0].heads, -1))
        return _whole(by_head, axis + 1).flatten(axis, axis + 1)

    def joined(attention: Any) -> Any:
        """Return what follows the heads. The padding of heads would tear the groups of int4 weights apart."""
        layer, padded = attention.out_proj, attention.q_proj.weight.shape[0] // attention.heads % LANES
        return as_int8(layer) if padded and isinstance(layer, Int4Linear) else layer

    table, head = model.decoder.embed_tokens or model.shared, model.take_head()
    head_product = _product(_stacked([head]))
    tokens: NDArray[Any] | Product
    if not isinstance(table, Int8Embedding):
        tokens = _table(table.weight)
    else:
        tokens = head_product if table is head else _product(_stacked([table]))
        table.keep_elsewhere(_rows_of(tokens, table.weight.shape[1]))
    return Weights(
        embedding=Embedding(
            tokens=tokens,
            positions=_table(model.decoder.positions),
            scale=np.float32(model.embed_scale),
            norm=_norm([model.decoder.layernorm_embedding]),
            size=model.shared.num_embeddings,
        ),
        self_qkv=_product(
            _stacked([each.q_proj for each in own], rows=heads, factor=scale),
            _stacked([each.k_proj for each in own], rows=heads),
            _stacked([each.v_proj for each in own], rows=heads),
        ),
        self_out=_product(_stacked([joined(each) for each in own], columns=heads)),
        self_norm=_norm([layer.self_attn_layer_norm for layer in layers]),
        cross_query=_product(_stacked([each.q_proj for each in cross], rows=heads, factor=scale)),
        cross_out=_product(_stacked([joined(each) for each in cross], columns=heads)),
        cross_norm=_norm([layer.encoder_attn_layer_norm for layer in layers]),
        fc1=_product(_stacked([layer.fc1 for layer in layers])),
        fc2=_product(_stacked([layer.fc2 for layer in layers])),
        final_norm=_norm([layer.final_layer_norm for layer in layers]),
        head=head_product,
    )


def whole_vectors(size: int) -> int:
    """Return `size` rounded up to whole vectors."""
    return -(-size // LANES) * LANES


def as_array(tensor: Tensor) -> NDArray[Any]:
    """Return the same memory; bfloat16, which numpy does not know, as the integers of its bits."""
    return tensor.view(torch.int16).numpy().view(np.uint16) if tensor.dtype == torch.bfloat16 else tensor.numpy()


def _whole(tensor: Tensor, axis: int) -> Tensor:
    """Pad to whole vectors."""
    return _fill(tensor, axis, whole_vectors(tensor.shape[axis]))


def _groups(tensor: Tensor, axis: int) -> Tensor:
    """Pad to whole groups of inputs that are multiplied together."""
    count, _ = _group(tensor)
    return _fill(tensor, axis, -(-tensor.shape[axis] // count) * count)


def _fill(tensor: Tensor, axis: int, size: int) -> Tensor:
    """Append zeros up to `size`."""
    missing = size - tensor.shape[axis]
    if not missing:
        return tensor
    shape = list(tensor.shape)
    shape[axis] = missing
    return torch.cat([tensor, tensor.new_zeros(shape)], axis)


def _group(weight: Tensor) -> tuple[int, torch.dtype]:
    """Return how many weights of an output are multiplied at once, and the type that holds so many."""
    groups = {torch.int8: (QUADS, torch.int32), torch.bfloat16: (PAIRS, torch.uint32)}
    return groups.get(weight.dtype, (1, weight.dtype))


def _product(*side_by_side: list[Tensor]) -> Product:
    """Join the outputs of `_stacked` layers."""
    return Product(*(as_array(torch.cat(part, 1)) for part in zip(*side_by_side, strict=True)))


def _stacked(
    layers: Sequence[Any], *, rows: Arrange = _whole, columns: Arrange = _groups, factor: float = 1.0
) -> list[Tensor]:
    """Return the parts of a Product. rows, columns: how outputs and inputs are padded; factor: multiplies outputs."""
    packed = (_packed(layer, rows, columns, factor) for layer in layers)
    return [torch.stack(part) for part in zip(*packed, strict=True)]


def _packed(layer: Any, rows: Arrange, columns: Arrange, factor: float) -> tuple[Tensor, ...]:
    if isinstance(layer, Int4Linear):
        return _packed_int4(layer, rows, factor)
    weight = columns(rows(layer.weight.data, 0), 1)  # [O, I]
    outputs = len(weight)
    if isinstance(layer, Int8Linear):
        scale = rows(layer.scale, 0)
        offset = ZERO_POINT * weight.sum(1, dtype=torch.float32)
    else:
        scale, offset = torch.ones(outputs), torch.zeros(outputs)
        if weight.dtype == torch.float16:
            weight = weight.float()
    count, dtype = _group(weight)
    by_vectors = weight.reshape(outputs // LANES, LANES, -1, count).transpose(1, 2).contiguous()
    weights = by_vectors.view(dtype)
    bias = getattr(layer, "bias", None)
    biases = torch.zeros(outputs) if bias is None else rows(bias.data, 0).float()
    return weights.flatten(), biases * factor, scale * factor, offset


def _packed_int4(layer: Int4Linear, rows: Arrange, factor: float) -> tuple[Tensor, ...]:
    stored = [rows(part, 0) for part in (layer.weight, layer.lowest, layer.spacing)]
    offset = ZERO_POINT * unpack(*stored).sum(1, dtype=torch.float32)  # inputs that fill a block are 0 too
    return _blocks(*stored), rows(layer.bias, 0).float() * factor, rows(layer.scale, 0) * factor, offset


def _blocks(weight: Tensor, lowest: Tensor, spacing: Tensor) -> Tensor:
    """Return the weights of an Int4Linear in the order of the kernels: uint8 [any]."""
    codes = codes_of(weight)
    codes = _fill(codes, 1, -(-codes.shape[1] // BLOCK) * BLOCK)
    quads = codes.reshape(len(codes) // LANES, LANES, -1, BLOCK // QUADS // 2, 2, QUADS)
    lower, upper = quads.permute(4, 0, 2, 3, 1, 5)  # [vectors, blocks, pairs of quads, LANES, QUADS] each
    levels = torch.stack([lowest.view(torch.uint8), spacing], -1)  # [O, groups, 2]
    levels = _fill(levels, 1, codes.shape[1] // GROUP)
    levels = levels.reshape(len(codes) // LANES, LANES, -1, BLOCK // GROUP, 2).permute(0, 2, 3, 4, 1)
    return torch.cat([(lower | upper << 4).flatten(2), levels.flatten(2)], 2).flatten()


def _rows_of(product: Product, width: int) -> Callable[[Tensor], Tensor]:
    """Return what finds rows of a packed table: [...] -> int8 [..., width]."""
    quads = torch.from_numpy(product.weights[0]).view(product.bias.shape[1] // LANES, -1, LANES)
    return lambda tokens: quads[tokens // LANES, :, tokens % LANES].view(torch.int8)[..., :width]


def _table(weight: Tensor) -> NDArray[Any]:
    return as_array(weight.data.float() if weight.dtype == torch.float16 else weight.data)


def _norm(norms: Sequence[nn.LayerNorm]) -> Norm:
    return Norm(
        *(torch.stack([getattr(norm, name).data for norm in norms]).float().numpy() for name in ("weight", "bias"))
    )
