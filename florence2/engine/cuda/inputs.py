"""What changes from step to step, in one block of memory, so that a single copy brings it to the device."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


class Inputs:
    """Named integers and floats in one block each on the host and on the device; views of both, by name."""

    def __init__(self, sizes: dict[str, int], floats: Sequence[str], device: torch.device) -> None:
        block = torch.zeros(sum(sizes.values()), dtype=torch.int32)
        self._host = block.pin_memory() if device.type == "cuda" else block
        self._device = torch.zeros_like(block, device=device)
        self.host: dict[str, NDArray[np.int32 | np.float32]] = {}
        self.device: dict[str, Tensor] = {}
        for name, host, here in zip(sizes, *(part.split([*sizes.values()]) for part in (self._host, self._device)),
                                    strict=True):  # fmt: skip
            numbers = torch.float32 if name in floats else torch.int32
            self.host[name], self.device[name] = host.view(numbers).numpy(), here.view(numbers)

    def upload(self) -> None:
        """Copy the host's block to the device."""
        self._device.copy_(self._host, non_blocking=True)
