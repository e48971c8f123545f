"""The embedded server's encoder: however many requests have an image, and whenever they come, it is encoded once."""

from __future__ import annotations

import time
import urllib.request
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import tritonclient.grpc

from florence2.server.embedded import EmbeddedServer
from florence2.server.launch import usable_cores
from florence2.server.options import ServingOptions
from florence2.triton.onnx_session import open_session
from florence2_client import Client
from florence2_export.repository import read_config
from florence2_export.targets import as_triton_passes_it
from tests.live.plain_requests import png, scene_image
from tests.live.test_decoder import metrics

MODEL = "florence2_vision"
TASKS = ("caption", "od", "ocr")
PUBLISHED_WITHIN = 60.0  # seconds; once a second, and later on a busy machine


def encode(client, pixels):
    """Return the features float32 [B, T, D] of pixels uint8 [B, H, W, 3]."""
    item = tritonclient.grpc.InferInput("PIXELS", list(pixels.shape), "UINT8")
    item.set_data_from_numpy(pixels)
    return client.infer(MODEL, [item]).as_numpy("IMAGE_FEATURES")


def counts(server) -> np.ndarray:
    """Return the runs, hits, and joins so far."""
    with urllib.request.urlopen(server.metrics_url) as page:
        lines = page.read().decode().splitlines()
    names = [f"florence2_encoder_{what}_total{{" for what in ("runs", "hits", "joins")]
    return np.array([sum(float(line.split()[-1]) for line in lines if line.startswith(name)) for name in names])


def counted(server: EmbeddedServer, images: int, work: Callable[[], object]) -> list[float]:
    """Return how the counts of so many images grew by `work`."""
    before, end = counts(server), time.monotonic() + PUBLISHED_WITHIN
    work()
    while (grown := counts(server) - before).sum() < images and time.monotonic() < end:
        time.sleep(0.1)
    return grown.tolist()


@pytest.fixture(scope="module")
def server(server: EmbeddedServer) -> EmbeddedServer:
    """The shared server, once all that earlier tests sent has been published: that is so after two more images."""
    pixels = np.random.default_rng(0).integers(0, 256, (2, 1, 192, 192, 3), dtype=np.uint8)
    with tritonclient.grpc.InferenceServerClient(server.grpc_url.removeprefix("grpc://")) as client:
        for image in pixels:
            counted(server, 1, lambda image=image: encode(client, image))
    return server


def test_a_repeated_image_is_answered_from_the_cache_with_equal_features(server, repository, monkeypatch):
    """Expect what the encoder computes, bit for bit, also after other images, one by one and as a batch."""
    monkeypatch.setenv("OMP_NUM_THREADS", str(usable_cores()))
    folder = repository / MODEL
    config = read_config(folder)
    shape = (1, *config.input[0].dims)
    images = np.random.default_rng(5).integers(0, 256, (3, *shape), dtype=np.uint8)
    with tritonclient.grpc.InferenceServerClient(server.grpc_url.removeprefix("grpc://")) as client:
        computed: list[np.ndarray] = []
        cached: list[np.ndarray] = []
        assert counted(server, 3, lambda: computed.extend(encode(client, image) for image in images)) == [3, 0, 0]
        assert counted(server, 3, lambda: cached.extend(encode(client, image) for image in images)) == [0, 3, 0]
        assert counted(server, 3, lambda: cached.extend(encode(client, images[:, 0])[:, None])) == [3, 0, 0]
    np.testing.assert_array_equal(cached, [*computed, *computed])
    uncached = open_session(folder / "1" / "model.onnx", as_triton_passes_it(config))
    np.testing.assert_array_equal(computed[0], uncached.run({"PIXELS": images[0]})["IMAGE_FEATURES"])
    assert not np.array_equal(computed[0], computed[1])


@pytest.mark.parametrize("concurrency", [1, 4, 36])
def test_twelve_images_with_three_tasks_are_encoded_twelve_times(server, concurrency):
    """At any concurrency."""
    images = [png(scene_image(700 + 12 * concurrency + number)) for number in range(12)]
    questions = [(image, task) for image in images for task in TASKS]

    def ask() -> None:
        with ThreadPoolExecutor(concurrency) as pool:
            list(pool.map(lambda question: client.run(*question, max_new_tokens=5), questions))

    with Client(server.grpc_url) as client:
        runs, hits, joins = counted(server, 36, ask)
    assert (runs, hits + joins) == (12, 24)


def test_eight_requests_for_a_new_image_share_one_run(server):
    image = png(scene_image(690))

    def ask() -> None:
        with ThreadPoolExecutor(8) as pool:
            answers = pool.map(lambda _: client.run(image, "caption", max_new_tokens=5).text, range(8))
            assert len(set(answers)) == 1

    with Client(server.grpc_url) as client:
        runs, hits, joins = counted(server, 8, ask)
    assert (runs, hits + joins) == (1, 7)


def test_twenty_phrases_in_one_call_are_encoded_once(server):
    phrases = [f"thing number {number}" for number in range(20)]
    with Client(server.grpc_url) as client:
        image = png(scene_image(691))
        runs, hits, joins = counted(server, 20, lambda: client.find(image, phrases, max_new_tokens=5).merged())
    assert (runs, hits + joins) == (1, 19)


def test_a_canceled_request_harms_no_other(server):
    """Not even those that wait for the run that it started. What it began is kept."""
    images = np.random.default_rng(8).integers(0, 256, (10, 1, 192, 192, 3), dtype=np.uint8)
    with tritonclient.grpc.InferenceServerClient(server.grpc_url.removeprefix("grpc://")) as client:
        for pixels in images:
            item = tritonclient.grpc.InferInput("PIXELS", list(pixels.shape), "UINT8").set_data_from_numpy(pixels)
            client.async_infer(MODEL, [item], lambda result, error: None).cancel()
            joined, later = encode(client, pixels), encode(client, pixels)
            np.testing.assert_array_equal(joined, later)


@pytest.fixture(scope="module")
def server_without_cache(repository: Path) -> Iterator[EmbeddedServer]:
    """A server that keeps no features, but answers."""
    with EmbeddedServer(ServingOptions.on_free_ports(repository, cache_mib=0, cache_answers=1)) as running:
        yield running


def test_warm_ups_count_for_nothing(server_without_cache):
    """The first image of a client is the first that is counted."""
    with tritonclient.grpc.InferenceServerClient(server_without_cache.grpc_url.removeprefix("grpc://")) as client:
        shape = (1, *client.get_model_config(MODEL, as_json=True)["config"]["input"][0]["dims"])
        black = np.zeros([int(size) for size in shape], np.uint8)
        assert counted(server_without_cache, 1, lambda: encode(client, black)) == [1, 0, 0]
    assert counts(server_without_cache).tolist() == [1, 0, 0]


def test_without_a_cache_requests_still_share_a_run(server_without_cache):
    """When 64 requests have two images, many wait while one is encoded; a later one is encoded again."""
    pixels = np.random.default_rng(6).integers(0, 256, (2, 1, 192, 192, 3), dtype=np.uint8)
    with tritonclient.grpc.InferenceServerClient(server_without_cache.grpc_url.removeprefix("grpc://")) as client:

        def crowd() -> None:
            with ThreadPoolExecutor(64) as pool:
                features = list(pool.map(lambda number: encode(client, pixels[number % 2]), range(64)))
            for number, each in enumerate(features):
                np.testing.assert_array_equal(each, features[number % 2])

        runs, hits, joins = counted(server_without_cache, 64, crowd)
        assert hits == 0 and joins > 0 and runs + joins == 64
        assert counted(server_without_cache, 1, lambda: encode(client, pixels[0])) == [1, 0, 0]


def test_equal_requests_get_the_answer_again_where_answers_are_kept(server_without_cache):
    """Another option is another request, and what is drawn without a seed is drawn anew. Hits count as answers."""
    image = png(scene_image(691))
    with Client(server_without_cache.grpc_url) as client:
        first, again = (client.run(image, "od", num_beams=1) for _ in range(2))
        short = client.run(image, "od", num_beams=1, max_new_tokens=5)
        drawn = [client.run(image, "caption", temperature=100, max_new_tokens=8).text for _ in range(2)]
        seeded = [client.run(image, "ocr", temperature=100, seed=7, max_new_tokens=8).text for _ in range(2)]
    assert again == first != short and drawn[0] != drawn[1] and seeded[0] == seeded[1]
    published = metrics(server_without_cache)
    hits = {line: value for line, value in published.items() if line.startswith("florence2_answer_hits") and value}
    assert hits == {f'florence2_answer_hits_total{{task="{task}"}}': 1 for task in ("ocr", "od")}
    assert sum(value for line, value in published.items() if line.startswith("florence2_requests_total")) == 7
    assert published["florence2_time_to_first_token_seconds_count"] == 5
