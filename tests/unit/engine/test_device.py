"""The labels of metrics that name the device."""

from types import SimpleNamespace

import torch

from florence2.engine.device import device_labels


def test_a_cpu_has_no_uuid():
    assert device_labels("cpu") == {"device": "cpu"}


def test_a_gpu_has_tritons_uuid(monkeypatch):
    """Triton's metrics and nvidia-smi write GPU- in front of it, torch does not."""
    cards = {"cuda:1": SimpleNamespace(name="NVIDIA L4", uuid="0b1f5ad6-1111-2222-3333-444455556666")}
    monkeypatch.setattr(torch.cuda, "get_device_properties", cards.get)
    labels = {"device": "NVIDIA L4", "gpu_uuid": "GPU-0b1f5ad6-1111-2222-3333-444455556666"}
    assert device_labels("cuda:1") == labels
