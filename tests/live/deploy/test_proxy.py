"""The proxy for machines on the internet, a real Caddy in front of a live server: a key, few routes, a limit."""

from __future__ import annotations

import base64
import http.client
import json
import os
import shutil
import socket
import subprocess
import time
import urllib.parse
from collections.abc import Iterator
from pathlib import Path

import openai
import pytest

from florence2_client import Client
from florence2_client.gateway.app import GatewayOptions, make_app
from florence2_client.gateway.server import Front

ROOT = Path(__file__).parents[3]
IMAGE = ROOT / "docs" / "images" / "answers.png"
KEY = {"Authorization": "Bearer a-key"}
ENSEMBLE = "/v2/models/florence2_ensemble"


@pytest.fixture(scope="module")
def gateway(server) -> Iterator[str]:
    front = Front("127.0.0.1", 0, drain_seconds=5)
    with front.running(make_app(GatewayOptions(url=server.grpc_url, keys=("a-key",)), None)):
        yield front.url


@pytest.fixture(scope="module")
def proxy(server, gateway, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Yield the proxy's address. It has no TLS, for which Caddy would install an authority on this machine."""
    caddy = shutil.which("caddy")
    if caddy is None:
        pytest.skip("there is no caddy; on Debian: apt install caddy")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    environment = os.environ | {
        "DOMAIN": f"http://{address}",
        "API_KEY": "a-key",
        "TRITON": urllib.parse.urlparse(server.http_url).netloc,
        "GATEWAY": urllib.parse.urlparse(gateway).netloc,
        "HOME": str(tmp_path_factory.mktemp("caddy")),
    }
    command = [caddy, "run", "--config", ROOT / "deploy" / "caddy" / "Caddyfile", "--adapter", "caddyfile"]
    process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        wait_for(address)
        yield address
    finally:
        process.terminate()
        process.wait()


def wait_for(address: str) -> None:
    host, port = address.split(":")
    for _ in range(100):
        try:
            socket.create_connection((host, int(port)), 1).close()
            return
        except OSError:
            time.sleep(0.1)
    raise AssertionError("caddy did not start")


def status(proxy: str, method: str, path: str, headers: dict[str, str], body: bytes | None = None) -> int:
    connection = http.client.HTTPConnection(proxy, timeout=30)
    try:
        connection.request(method, path, body, headers)
        return connection.getresponse().status
    finally:
        connection.close()


def test_openai_s_api_comes_through_with_the_key(proxy: str):
    """Complete and streamed; the gateway's other routes stay internal."""
    url = "data:image/png;base64," + base64.b64encode(IMAGE.read_bytes()).decode()
    content = [{"type": "text", "text": "<CAPTION>"}, {"type": "image_url", "image_url": {"url": url}}]
    asked = {"model": "florence2", "messages": [{"role": "user", "content": content}]}
    with openai.OpenAI(base_url=f"http://{proxy}/v1", api_key="a-key", max_retries=0) as client:
        assert client.chat.completions.create(**asked).choices[0].message.content
        assert len(list(client.chat.completions.create(**asked, stream=True))) > 1
    assert status(proxy, "GET", "/metrics", KEY) == 404
    assert status(proxy, "GET", "/v1/models", {}) == 401


def test_labeling_tools_come_through_with_the_key_in_their_forms(proxy: str):
    """Label Studio sends it as a password, X-AnyLabeling in a header; the gateway refuses all others."""
    basic = {"Authorization": "Basic " + base64.b64encode(b"me:a-key").decode()}
    assert status(proxy, "POST", "/label-studio/setup", basic, b"{}") == 200
    assert status(proxy, "GET", "/x-anylabeling/v1/models", {"Token": "a-key"}) == 200
    for path in "/label-studio/versions", "/x-anylabeling/v1/models":
        assert status(proxy, "GET", path, {}) == status(proxy, "GET", path, {"Token": "wrong"}) == 401
    for path in "/label-studio/../metrics", "/label-studio/%2e%2e/v2/models/stats", "/x-anylabeling/../docs":
        assert status(proxy, "GET", path, basic) in (401, 404)
    image = {"model": "florence2", "image": "data:," + "x" * 25 * 10**6}
    large = status(proxy, "POST", "/x-anylabeling/v1/predict", {"Token": "a-key"}, json.dumps(image).encode())
    assert large in (413, 502)


def test_answers_come_through_with_the_key(proxy: str):
    """The client library gets answers through the proxy, complete and streamed."""
    with Client(f"http://{proxy}", headers=KEY) as client:
        assert client.detect(IMAGE).answer.labels
        assert len(list(client.stream(IMAGE, "<CAPTION>"))) > 1
    assert status(proxy, "GET", "/v2/health/ready", KEY) == 200
    assert status(proxy, "GET", f"{ENSEMBLE}/config", KEY) == 200


@pytest.mark.parametrize("headers", [{}, {"Authorization": "Bearer "}, {"Authorization": "Bearer wrong"}])
def test_without_the_key_nothing_is_told(proxy: str, headers: dict[str, str]):
    """Without the key, the proxy does not even tell whether a route exists."""
    for path in "/v2/health/ready", "/nowhere":
        assert status(proxy, "GET", path, headers) == 401
    assert status(proxy, "POST", f"{ENSEMBLE}/generate", headers, b"{}") == 401


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("POST", "/v2/repository/index"),
        ("POST", "/v2/repository/models/florence2_decoder/unload"),
        ("GET", "/v2/systemsharedmemory/status"),
        ("POST", "/v2/systemsharedmemory/region/x/register"),
        ("GET", "/v2/logging"),
        ("POST", "/v2/trace/setting"),
        ("GET", "/v2/models/stats"),
        ("GET", "/metrics"),
        ("POST", "/v2/models/florence2_decoder/infer"),
        ("POST", f"{ENSEMBLE}/../florence2_decoder/infer"),
        ("POST", f"{ENSEMBLE}/%2e%2e/florence2_decoder/infer"),
        ("POST", "/v2/models/florence2_decoder%2Fx_ensemble/infer"),
        ("GET", f"{ENSEMBLE}/generate"),
        ("PUT", f"{ENSEMBLE}/infer"),
    ],
)
def test_nothing_but_the_ensembles_is_reached(proxy: str, method: str, path: str):
    """The internet loads no models, registers no memory and reaches no internal model, with the key or without."""
    assert status(proxy, method, path, KEY, b"{}" if method == "POST" else None) == 404


@pytest.mark.parametrize("name", ["classification", "\\u0063lassification", "classif\\u0069cation"])
def test_requests_that_crash_triton_are_refused(proxy: str, name: str):
    """However the parameter is spelled; the word in a text is no reason to refuse it."""
    image = {
        "name": "IMAGE",
        "shape": [1],
        "datatype": "BYTES",
        "data": [base64.b64encode(IMAGE.read_bytes()).decode()],
    }
    task = {"name": "TASK", "shape": [1], "datatype": "BYTES", "data": ['a "classification" of birds']}
    body = {"inputs": [image, task], "outputs": [{"name": "RESULT"}]}
    assert status(proxy, "POST", f"{ENSEMBLE}/infer", KEY, json.dumps(body).encode()) == 200
    crash = json.dumps(body | {"outputs": [{"name": "RESULT", "parameters": {"NAME": 1}}]}).replace("NAME", name)
    assert status(proxy, "POST", f"{ENSEMBLE}/infer", KEY, crash.encode()) == 400
    assert status(proxy, "GET", "/v2/health/ready", KEY) == 200


def test_large_bodies_are_refused(proxy: str, server):
    """Large bodies are refused before Triton holds them in memory. Caddy before 2.7 answers 502, later versions 413."""
    body = b"x" * (25 * 10**6)
    assert status(proxy, "POST", f"{ENSEMBLE}/generate", KEY, body) in (413, 502)
    assert status(proxy, "GET", "/v2/health/ready", KEY) == 200
