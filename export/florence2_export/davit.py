"""Florence-2's vision encoder for inference: transformers' mathematics and weight names with fewer copies.

`vision` loads a checkpoint's weights into it and traces it; the parity report compares it with transformers.
It differs from transformers' own modules in three ways, which change only speed and rounding:

- Activations stay [B, N, C]. A convolution permutes the axes to [B, C, H, W] and back, which is free in runtimes that
  compute convolutions channels-last; transformers' `flatten(2).transpose(1, 2)` costs them two copies.
- Attention's scale is folded into the query's weights. Channel attention sums over all N tokens (36,864 in base's first
  stage), and a sum that is scaled afterwards could leave float16's range.
- Layer norm, softmax and channel attention compute in float32 for any dtype of the weights.

Shapes: B images, H x W places, N = H * W, C channels, h heads or groups, c channels of one head or group, w window,
T image tokens, D = d_model.
"""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import Florence2Config
from transformers.activations import ACT2FN
from transformers.models.florence2.configuration_florence2 import Florence2VisionConfig


class Norm(nn.LayerNorm):
    """Layer norm in float32, returned in the dtype of its input."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.float()).to(x.dtype)


class Attention(nn.Module):
    """What window and channel attention share: the projections, and a query that its weights scale."""

    def __init__(self, channels: int, heads: int, bias: bool) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(channels, channels * 3, bias=bias)
        self.proj = nn.Linear(channels, channels)

    def scale_query(self, factor: float) -> None:
        """Fold `factor` into the query's rows of `qkv`. It copies the weights, which the checkpoint may share."""
        factors = torch.ones(self.qkv.out_features)
        factors[: self.proj.in_features] = factor
        self.qkv.weight = nn.Parameter(self.qkv.weight * factors[:, None])
        if self.qkv.bias is not None:
            self.qkv.bias = nn.Parameter(self.qkv.bias * factors)

    def split(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return query, key and value, [B, h, N, c] each, of x [B, N, C]."""
        batch, places, channels = x.shape
        qkv = self.qkv(x).reshape(batch, places, 3, self.heads, channels // self.heads)
        query, key, value = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        return query, key, value

    def join(self, x: Tensor) -> Tensor:
        """Join the heads and project: [B, h, N, c] -> [B, N, C]."""
        joined: Tensor = self.proj(x.transpose(1, 2).flatten(2))
        return joined


class WindowAttention(Attention):
    """Attention of each place to the places of its window of w x w."""

    def __init__(self, channels: int, heads: int, bias: bool, window: int) -> None:
        super().__init__(channels, heads, bias)
        self.window = window

    def fold_scale(self, height: int, width: int) -> None:
        self.scale_query((self.proj.in_features // self.heads) ** -0.5)

    def forward(self, x: Tensor, height: int, width: int) -> Tensor:
        """Map [B, N, C] to [B, N, C]."""
        batch, _, channels = x.shape
        w = self.window
        down, right = -height % w, -width % w  # padding, after the norm as in transformers; none in published models
        x = x.reshape(batch, height, width, channels)
        if down or right:
            x = functional.pad(x, (0, 0, 0, right, 0, down))
        rows, columns = (height + down) // w, (width + right) // w
        x = x.reshape(batch, rows, w, columns, w, channels).permute(0, 1, 3, 2, 4, 5)
        query, key, value = self.split(x.reshape(batch * rows * columns, w * w, channels))
        weights = torch.softmax((query @ key.transpose(-2, -1)).float(), dim=-1).to(value.dtype)
        x = self.join(weights @ value)
        x = x.reshape(batch, rows, columns, w, w, channels).permute(0, 1, 3, 2, 4, 5)
        x = x.reshape(batch, rows * w, columns * w, channels)[:, :height, :width]
        return x.reshape(batch, height * width, channels)


class ChannelAttention(Attention):
    """Attention of each channel to the channels of its group, over all places."""

    def fold_scale(self, height: int, width: int) -> None:
        self.scale_query((height * width) ** -0.5)

    def forward(self, x: Tensor, height: int, width: int) -> Tensor:
        """Map [B, N, C] to [B, N, C]."""
        query, key, value = (part.float() for part in self.split(x))
        weights = torch.softmax(query.transpose(-2, -1) @ key, dim=-1)  # [B, h, c, c]
        return self.join((value @ weights.transpose(-2, -1)).to(x.dtype))


class Mlp(nn.Module):
    """Two linear layers with an activation between them."""

    def __init__(self, channels: int, ratio: float, activation: str) -> None:
        super().__init__()
        self.activation = ACT2FN[activation]
        self.fc1 = nn.Linear(channels, int(channels * ratio))
        self.fc2 = nn.Linear(int(channels * ratio), channels)

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.fc2(self.activation(self.fc1(x)))
        return result


def place_encoding(channels: int) -> nn.Conv2d:
    """Return the depthwise convolution that encodes positions."""
    return nn.Conv2d(channels, channels, kernel_size=3, padding=1, groups=channels)


class HalfBlock(nn.Module):
    """Attention, then the MLP, each after a place encoding. A subclass names its kind of attention."""

    attention_name: str

    def __init__(self, config: Florence2VisionConfig, stage: int, attention: Attention) -> None:
        super().__init__()
        channels = config.embed_dim[stage]
        self.conv1, self.norm1 = place_encoding(channels), Norm(channels)
        self.add_module(self.attention_name, attention)
        self.conv2, self.norm2 = place_encoding(channels), Norm(channels)
        self.ffn = Mlp(channels, config.mlp_ratio, config.activation_function)

    def forward(self, x: Tensor, height: int, width: int) -> Tensor:
        """Map [B, N, C] to [B, N, C]."""
        x = x + convolve(self.conv1, x, height, width)
        x = x + self.get_submodule(self.attention_name)(self.norm1(x), height, width)
        x = x + convolve(self.conv2, x, height, width)
        result: Tensor = x + self.ffn(self.norm2(x))
        return result


class SpatialBlock(HalfBlock):
    """The half with window attention."""

    attention_name = "window_attn"


class ChannelBlock(HalfBlock):
    """The half with channel attention."""

    attention_name = "channel_attn"


class Block(nn.Module):
    """A spatial and a channel half."""

    def __init__(self, config: Florence2VisionConfig, stage: int) -> None:
        super().__init__()
        channels, bias = config.embed_dim[stage], config.qkv_bias
        window = WindowAttention(channels, config.num_heads[stage], bias, config.window_size)
        self.spatial_block = SpatialBlock(config, stage, window)
        channel = ChannelAttention(channels, config.num_groups[stage], bias)
        self.channel_block = ChannelBlock(config, stage, channel)

    def forward(self, x: Tensor, height: int, width: int) -> Tensor:
        result: Tensor = self.channel_block(self.spatial_block(x, height, width), height, width)
        return result


class Shrink(nn.Module):
    """The start of a stage: a convolution with stride, and a norm before or after it."""

    def __init__(self, config: Florence2VisionConfig, stage: int) -> None:
        super().__init__()
        before = config.embed_dim[stage - 1] if stage else config.in_channels
        after = config.embed_dim[stage]
        self.norm_first = config.patch_prenorm[stage]
        self.conv = nn.Conv2d(
            before, after, config.patch_size[stage], config.patch_stride[stage], config.patch_padding[stage]
        )
        self.norm = Norm(before if self.norm_first else after)

    def size(self, height: int, width: int) -> tuple[int, int]:
        """Return H and W after the convolution, by the formula of torch.nn.Conv2d."""
        kernel, stride, padding = self.conv.kernel_size[0], self.conv.stride[0], int(self.conv.padding[0])
        height, width = ((side + 2 * padding - kernel) // stride + 1 for side in (height, width))
        return height, width

    def forward(self, x: Tensor, height: int, width: int) -> Tensor:
        """Return [B, fewer N, more C] for x [B, N, C]."""
        if self.norm_first:
            return convolve(self.conv, self.norm(x), height, width)
        result: Tensor = self.norm(convolve(self.conv, x, height, width))
        return result


def convolve(convolution: nn.Conv2d, x: Tensor, height: int, width: int) -> Tensor:
    """Apply a convolution to x [B, N, C], which stands for H x W places. Return [B, N', C']."""
    batch, _, channels = x.shape
    result = convolution(x.reshape(batch, height, width, channels).permute(0, 3, 1, 2))
    return result.permute(0, 2, 3, 1).flatten(1, 2)


class Tower(nn.Module):
    """All stages. Its weights have the names of transformers' Florence2VisionBackbone."""

    def __init__(self, config: Florence2VisionConfig, height: int, width: int) -> None:
        super().__init__()
        shrinks = [Shrink(config, stage) for stage in range(len(config.depths))]
        self.convs = nn.ModuleList(shrinks)
        self.blocks = nn.ModuleList(
            nn.ModuleList(Block(config, stage) for _ in range(depth)) for stage, depth in enumerate(config.depths)
        )
        self.sizes = [(height, width)]  # before each stage and after the last
        for shrink in shrinks:
            self.sizes.append(shrink.size(*self.sizes[-1]))

    def fold_scales(self) -> None:
        """Fold attention's scales into the weights. Call it once, after the weights are loaded."""
        for stage, size in zip(self.blocks, self.sizes[1:], strict=True):
            for module in stage.modules():
                if isinstance(module, WindowAttention | ChannelAttention):
                    module.fold_scale(*size)

    def forward(self, x: Tensor) -> Tensor:
        """Return the last stage's features [B, N, C] of normalized pixels [B, H * W, 3]."""
        for conv, blocks, before, after in zip(self.convs, self.blocks, self.sizes, self.sizes[1:], strict=False):
            x = conv(x, *before)
            for block in cast(nn.ModuleList, blocks):
                x = block(x, *after)
        return x


class Projector(nn.Module):
    """Position embeddings, the mean as a first token, and a projection to the language model's width.

    Its weights have the names of transformers' Florence2MultiModalProjector, whose embeddings `position` adds up.
    """

    position: Tensor

    def __init__(self, config: Florence2Config) -> None:
        super().__init__()
        channels, width = config.vision_config.embed_dim[-1], config.vision_config.projection_dim
        self.image_projection = nn.Linear(channels, width, bias=False)
        self.image_proj_norm = Norm(width)

    def set_position(self, columns: Tensor, rows: Tensor, first_frame: Tensor, height: int, width: int) -> None:
        """Set `position` from embeddings: columns and rows [places, C / 2], first_frame [C] of a single image."""
        position = torch.cat(
            [columns[None, :width].expand(height, -1, -1), rows[:height, None].expand(-1, width, -1)], dim=-1
        )
        self.register_buffer("position", position.flatten(0, 1) + first_frame)

    def forward(self, x: Tensor) -> Tensor:
        """Return [B, T, D] with T = 1 + N for x [B, N, C]."""
        x = x + self.position.to(x.dtype)
        x = torch.cat([x.mean(dim=1, keepdim=True), x], dim=1)
        features: Tensor = self.image_proj_norm(self.image_projection(x))
        return features


def to_dtype(module: nn.Module, dtype: torch.dtype) -> None:
    """Convert linear layers and convolutions to `dtype`. Norms keep float32."""
    for part in module.modules():
        if isinstance(part, nn.Linear | nn.Conv2d):
            part.to(dtype)
