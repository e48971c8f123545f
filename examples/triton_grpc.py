"""Detect objects with NVIDIA's client for Triton: python triton_grpc.py IMAGE [HOST:PORT]."""

import json
import sys
from pathlib import Path

import numpy as np
import tritonclient.grpc as triton


def tensor(name: str, value: bytes) -> triton.InferInput:
    """Return an input of one string."""
    item = triton.InferInput(name, [1], "BYTES")
    item.set_data_from_numpy(np.array([value], dtype=np.object_))
    return item


with triton.InferenceServerClient(sys.argv[2] if len(sys.argv) > 2 else "127.0.0.1:8001") as client:
    inputs = [tensor("IMAGE", Path(sys.argv[1]).read_bytes()), tensor("TASK", b"<OD>")]
    response = client.infer("florence2_ensemble", inputs)

answer = json.loads(response.as_numpy("RESULT")[0])["<OD>"]
for label, box in zip(answer["labels"], answer["bboxes"], strict=True):
    print(label, box)
