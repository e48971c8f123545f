"""An export for GPUs in the embedded server: where its models run, transformers' answers, and the labels of metrics."""

from __future__ import annotations

import json
import re
import urllib.request

import pytest
import torch

from bench.checkpoints import BUNDLED
from bench.compare.loads import BEAMS
from bench.compare.quality import LONGEST, examples, measure_quality
from bench.compare.servers import asking
from bench.harness import embedded_server
from bench.static_batch.generate import Generator


@pytest.fixture(scope="module")
def server(exported, device):
    with pytest.MonkeyPatch.context() as patch:
        if device == "cpu":
            patch.setenv("CUDA_VISIBLE_DEVICES", "")
        with embedded_server(exported("float32")) as running:
            yield running


def test_answers_are_transformers(server):
    """All tasks, letter for letter, with many requests in flight. transformers runs on the CPU."""
    reference = Generator(BUNDLED, torch.float32)
    expected = [reference.answer([one.image], [one.prompt], [LONGEST], BEAMS)[0].text for one in examples(1)]
    with asking(server.grpc_url, "florence2_ensemble", [1]) as ask:
        assert measure_quality(ask, 1, 24).answers == expected


@pytest.mark.parametrize("model", ["florence2_decoder", "florence2_vision"])
def test_both_models_are_placed_on_the_device(server, device, model):
    """KIND_AUTO becomes KIND_GPU where Triton sees a GPU."""
    with urllib.request.urlopen(f"{server.http_url}/v2/models/{model}/config") as answer:
        (group,) = json.load(answer)["instance_group"]
    assert group["kind"] == ("KIND_GPU" if device == "cuda" else "KIND_CPU")
    assert group["count"] == 1 and group.get("gpus", []) == ([0] if device == "cuda" else [])


def test_metrics_name_the_device(server, device):
    with urllib.request.urlopen(server.metrics_url) as answer:
        lines = re.findall(r"^florence2_engine_up\{(.*)\} 1$", answer.read().decode(), re.M)
    name = torch.cuda.get_device_name() if device == "cuda" else "cpu"
    assert len(lines) == 1 and f'device="{name}"' in lines[0]
    assert ("gpu_uuid=" in lines[0]) == (device == "cuda")
