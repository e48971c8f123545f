"""What the backend for CUDA takes besides weights, keys and values, from shapes: an estimate that the budget counts.

`bench.gpu.steps` compares it with a GPU. Tests compare what is allocated with the same steps on a CPU.
"""

from __future__ import annotations

import torch

from florence2.config import ModelConfig

LOGITS = 20  # float32 numbers for each of a step's logits while tokens are chosen; 7 are used, 14 to draw some
MOVED = 2  # copies of a row's keys in a layer when beams move: all shorter shapes together take as much as the longest
GRAPH_BYTES_PER_LAYER = 2**19  # the driver's, for some 40 kernels


def memory_of_steps(config: ModelConfig, rows: int, dtype: torch.dtype) -> int:
    """Return the most that steps allocate for intermediate results, which all graphs share."""
    text = config.text
    moved = MOVED * text.max_positions * text.d_model * dtype.itemsize
    return rows * (LOGITS * torch.float32.itemsize * text.vocab_size + moved)


def memory_of_graphs(config: ModelConfig, graphs: int) -> int:
    """Return what the driver takes for so many graphs."""
    return graphs * config.text.decoder_layers * GRAPH_BYTES_PER_LAYER


def memory_of_prefill(config: ModelConfig, requests: int, dtype: torch.dtype) -> int:
    """Return the most that prefill allocates for so many requests: the inner and some outer numbers of a layer."""
    text = config.text
    numbers = 2 * text.encoder_ffn + 9 * text.d_model
    return requests * config.encoder_positions * numbers * dtype.itemsize
