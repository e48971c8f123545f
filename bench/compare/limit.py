"""How fast this machine could answer at most: its own matrix products and its own reading of memory, and nothing else.

An answer takes the operations of both encoders, at the rate of large bfloat16 matrix products; each of its tokens takes
one reading of the decoder's weights in int8, which all callers share. Keys and values are not even counted.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import Florence2ForConditionalGeneration

from bench.compare.checkpoint import base_config
from bench.decode import BASE, PROMPT_TOKENS, decoder_bytes, read_seconds
from bench.vision import matrix_products

PROBE_FLOPS = 10**9
PROBE_BYTES = 2**28


@dataclass(frozen=True)
class Machine:
    """Each a second."""

    bfloat16_flops: float
    float32_flops: float
    bytes_read: float

    @classmethod
    def measure(cls) -> Machine:
        float32, bfloat16 = (PROBE_FLOPS / seconds()[0] for seconds in matrix_products(PROBE_FLOPS).values())
        return cls(bfloat16, float32, PROBE_BYTES / read_seconds(PROBE_BYTES))


@dataclass(frozen=True)
class Work:
    """`flops` of an answer before its first token, and the `step_bytes` read for each token."""

    flops: int
    step_bytes: int

    @classmethod
    def of_base(cls) -> Work:
        """Counted on transformers' model without its data."""
        with torch.device("meta"), torch.inference_mode():
            model = Florence2ForConditionalGeneration(base_config()).eval()
            with FlopCounterMode(display=False) as counter:
                features = model.get_image_features(
                    torch.empty(1, 3, BASE.image.height, BASE.image.width)
                ).pooler_output
                prompt = torch.empty(1, PROMPT_TOKENS, BASE.text.d_model)
                model.model.language_model.encoder(inputs_embeds=torch.cat([features, prompt], dim=1))
            int8 = {
                name: torch.empty(tensor.shape, dtype=torch.int8)
                for name, tensor in model.model.language_model.state_dict().items()
                if "embed_tokens" not in name  # shared.weight under other names
            }
        return cls(counter.get_total_flops(), decoder_bytes(int8))

    def answers_per_second(self, machine: Machine, callers: int, tokens: int) -> float:
        """With so many callers at a time, who all want answers of so many tokens."""
        reading = tokens * self.step_bytes / callers / machine.bytes_read
        return 1 / (self.flops / machine.bfloat16_flops + reading)
