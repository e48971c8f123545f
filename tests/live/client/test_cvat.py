"""cvat-cli registers the function, and its agent answers a request for annotations with it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.live.client.cvat_server import CvatServer

SCENE = Path(__file__).parents[3] / "demo" / "images" / "scene.png"
CVAT_CLI = Path(sys.executable).with_name("cvat-cli")
MODULE = "florence2_client.integrations.cvat"


@pytest.mark.skipif(not CVAT_CLI.exists(), reason="cvat-cli is not installed")
def test_an_agent_annotates_a_task(server, tmp_path):
    """The labels that it registers are those that it annotates; the threshold is that of the request."""
    with CvatServer([SCENE], ["star", "triangle"]) as cvat:
        parameters = [f"url=str:{server.grpc_url}", "task=str:od", "labels=str:star,triangle"]
        function = ["--function-module", MODULE, *(part for each in parameters for part in ("-p", each))]
        for command in (["create-native", "Florence-2"], ["run-agent", "1", "--burst"]):
            subprocess.run(
                [CVAT_CLI, "--server-host", f"http://127.0.0.1:{cvat.port}",
                 "function", *command, *function],
                env=os.environ | {"CVAT_ACCESS_TOKEN": "key", "HOME": str(tmp_path)}, check=True,
            )  # fmt: skip
    [upload] = cvat.uploads
    assert [shape["label_id"] for shape in upload["shapes"]] == cvat.label_ids
    assert all(0.5 <= shape["score"] <= 1 for shape in upload["shapes"])
