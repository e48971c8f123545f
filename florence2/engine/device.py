"""Name the device that decodes, for the labels of metrics."""

from __future__ import annotations

import torch


def device_labels(device: str) -> dict[str, str]:
    """Return `device`, which is cpu or the GPU's name, and `gpu_uuid` of a GPU, as in Triton's own `nv_gpu_…` metrics.

    `device`: as torch names it, such as cuda:0.
    """
    if torch.device(device).type == "cpu":
        return {"device": "cpu"}
    properties = torch.cuda.get_device_properties(device)
    return {"device": properties.name, "gpu_uuid": f"GPU-{properties.uuid}"}
