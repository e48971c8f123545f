"""Describe the machine of a comparison: what it is, what it can do per second, and how much of that an answer needs."""

from __future__ import annotations

import os
import platform
import re
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import Florence2ForConditionalGeneration

from bench.checkpoints import base_config
from bench.decode import BASE, PROMPT_TOKENS, decoder_bytes, read_seconds
from bench.vision import matrix_products

PACKAGES = ("torch", "transformers", "openvino", "onnxruntime", "nvidia-pytriton")
PROBE_FLOPS = 10**9
PROBE_BYTES = 2**28


def conditions() -> dict[str, Any]:
    model = re.search(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text())
    return {
        "processor": model[1] if model else platform.machine(),
        "cores": len(os.sched_getaffinity(0)),
        "python": platform.python_version(),
        **{package: version(package) for package in PACKAGES},
    }


def rates() -> dict[str, float]:
    """Measure what this machine does per second at this moment: `bench.compare.figures.limits` reads it."""
    float32, bfloat16 = (PROBE_FLOPS / seconds()[0] for seconds in matrix_products(PROBE_FLOPS).values())
    return {"bfloat16_flops": bfloat16, "float32_flops": float32, "bytes_read": PROBE_BYTES / read_seconds(PROBE_BYTES)}


@dataclass(frozen=True)
class Work:
    """What an answer needs: `flops` before its first token, and `step_bytes` read for each token."""

    flops: int
    step_bytes: int

    @classmethod
    def of_base(cls) -> Work:
        """Count the work of base geometry on transformers' model without its data."""
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
