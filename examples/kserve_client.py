"""Detect objects with KServe's own client: python kserve_client.py IMAGE [URL].

URL is http://HOST:8000, or HOST:8001 for gRPC.
"""

import asyncio
import json
import sys
from pathlib import Path

import numpy as np
from kserve import InferenceGRPCClient, InferenceRESTClient, InferInput, InferRequest, InferResponse, RESTConfig

MODEL = "florence2_ensemble"


async def detect(image: str, url: str) -> InferResponse:
    """Send the image and the task as two tensors of one string each."""
    tensors = []
    for name, value in ("IMAGE", Path(image).read_bytes()), ("TASK", b"<OD>"):
        tensors.append(InferInput(name, [1], "BYTES"))
        tensors[-1].set_data_from_numpy(np.array([value], dtype=object))
    request = InferRequest(MODEL, tensors)
    if url.startswith("http"):
        return await InferenceRESTClient(RESTConfig(protocol="v2")).infer(url, request, MODEL)
    async with InferenceGRPCClient(url) as client:
        return await client.infer(request)


response = asyncio.run(detect(sys.argv[1], sys.argv[2] if len(sys.argv) > 2 else "http://127.0.0.1:8000"))
outputs = {output.name: output.as_numpy() for output in response.outputs}
answer = json.loads(outputs["RESULT"][0])["<OD>"]
for label, box in zip(answer["labels"], answer["bboxes"], strict=True):
    print(label, box)
