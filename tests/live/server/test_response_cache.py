"""Triton's response cache on the vision encoder: a repeated image is encoded once."""

import urllib.request

import numpy as np
import tritonclient.grpc

from florence2.server.launch import usable_cores
from florence2.triton.onnx_session import open_session
from florence2_export.repository import read_config
from florence2_export.targets import as_triton_passes_it

MODEL = "florence2_vision"


def encode(client, pixels):
    """Return the features float32 [B, T, D] of pixels uint8 [B, H, W, 3]."""
    item = tritonclient.grpc.InferInput("PIXELS", list(pixels.shape), "UINT8")
    item.set_data_from_numpy(pixels)
    return client.infer(MODEL, [item]).as_numpy("IMAGE_FEATURES")


def count(server, what: str) -> int:
    """Return a counter of the cache from the metrics endpoint."""
    with urllib.request.urlopen(server.metrics_url) as page:
        lines = page.read().decode().splitlines()
    name = f'nv_cache_num_{what}_per_model{{model="{MODEL}"'
    return sum(int(line.rsplit(" ", 1)[1]) for line in lines if line.startswith(name))


def test_a_repeated_image_is_answered_from_the_cache_with_equal_features(server, repository, monkeypatch):
    """Expect what the encoder computes, bit for bit, also after other images; metrics count hits and misses."""
    monkeypatch.setenv("OMP_NUM_THREADS", str(usable_cores()))
    folder = repository / MODEL
    config = read_config(folder)
    shape = (1, *config.input[0].dims)
    images = np.random.default_rng(5).integers(0, 256, (3, *shape), dtype=np.uint8)
    hits, misses = count(server, "hits"), count(server, "misses")
    with tritonclient.grpc.InferenceServerClient(server.grpc_url.removeprefix("grpc://")) as client:
        computed = [encode(client, image) for image in images]
        cached = [encode(client, image) for image in images]
    assert (count(server, "hits") - hits, count(server, "misses") - misses) == (3, 3)
    np.testing.assert_array_equal(cached, computed)
    uncached = open_session(folder / "1" / "model.onnx", as_triton_passes_it(config))
    np.testing.assert_array_equal(computed[0], uncached.run({"PIXELS": images[0]})["IMAGE_FEATURES"])
    assert not np.array_equal(computed[0], computed[1])
