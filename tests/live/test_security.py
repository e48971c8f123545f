"""docs/security.md is true: what the embedded server refuses, survives, shows and logs."""

from __future__ import annotations

import base64
import contextlib
import http.client
import io
import json
import socket
import struct
import time
import zlib
from pathlib import Path

import numpy as np
import pytest
import tritonclient.grpc as triton
from PIL import Image
from tritonclient.utils import InferenceServerException

from florence2.server.embedded import EmbeddedServer
from florence2.server.options import ServingOptions

PAGE = (Path(__file__).parents[2] / "docs" / "security.md").read_text(encoding="utf-8")
ENSEMBLE = "/v2/models/florence2_ensemble"
JSON = {"Content-Type": "application/json"}
FORM = {"Content-Type": "application/x-www-form-urlencoded"}  # what curl -d and urllib send


@pytest.fixture(scope="module")
def log() -> list[str]:
    return []


@pytest.fixture(scope="module")
def server(repository, log):
    """A separate server: the tests read its log, and a hostile request could end it for other tests."""
    with EmbeddedServer(ServingOptions.on_free_ports(repository), report=log.append) as running:
        yield running
        assert running._process.poll() is None, "something that was sent ended the server"


def ask(server, method: str, path: str, body: bytes | None = None, headers: dict[str, str] = JSON):
    """Return the status and the JSON of a response over HTTP."""
    connection = http.client.HTTPConnection(server.http_url.removeprefix("http://"), timeout=60)
    with contextlib.closing(connection):
        connection.request(method, path, body, headers)
        reply = connection.getresponse()
        return reply.status, json.loads(reply.read() or "null")


def generate(server, image, headers: dict[str, str] = JSON, **inputs):
    body = json.dumps({"IMAGE": image, "TASK": "<CAPTION>", "MAX_NEW_TOKENS": 1, "NUM_BEAMS": 1} | inputs).encode()
    return ask(server, "POST", f"{ENSEMBLE}/generate", body, headers)


def infer(server, image: bytes) -> None:
    inputs = []
    for name, value in ("IMAGE", image), ("TASK", b"<CAPTION>"):
        inputs.append(triton.InferInput(name, [1], "BYTES"))
        inputs[-1].set_data_from_numpy(np.array([value], np.object_))
    with triton.InferenceServerClient(server.grpc_url.removeprefix("grpc://")) as client:
        client.infer("florence2_ensemble", inputs, client_timeout=60)


def png(*chunks: tuple[bytes, bytes], side: int = 32) -> bytes:
    """Return a gray PNG with these chunks after its header."""
    pixels = zlib.compress(b"\0" * side * (side + 1))
    header = struct.pack(">IIBBBBB", side, side, 8, 0, 0, 0, 0)
    parts = [(b"IHDR", header), *chunks, (b"IDAT", pixels), (b"IEND", b"")]
    packed = (
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)) for kind, data in parts
    )
    return b"\x89PNG\r\n\x1a\n" + b"".join(packed)


CLOSED = [
    ("POST", "/v2/repository/index"),
    ("POST", "/v2/repository/models/florence2_vision/load"),
    ("POST", "/v2/repository/models/florence2_vision/unload"),
    ("GET", "/v2/systemsharedmemory/status"),
    ("POST", "/v2/systemsharedmemory/region/x/register"),
    ("POST", "/v2/systemsharedmemory/unregister"),
    ("GET", "/v2/cudasharedmemory/status"),
    ("POST", "/v2/cudasharedmemory/region/x/register"),
    ("GET", "/v2/logging"),
    ("POST", "/v2/logging"),
    ("GET", "/v2/trace/setting"),
    ("POST", "/v2/models/florence2_vision/trace/setting"),
]


@pytest.mark.parametrize(("method", "path"), CLOSED, ids=lambda value: value)
def test_http_cannot_change_the_server(server, method, path):
    """For any client, and with any spelling of the path."""
    assert ask(server, method, path, b"{}")[0] == 403
    for odd in f"/{path}", f"{path}/", path.replace("/v2", "/v2/."), path.replace("o", "%6f"), path.upper():
        assert ask(server, method, odd, b"{}")[0] in (400, 403, 404)


def test_grpc_cannot_change_the_server(server):
    """Everything that HTTP refuses is refused here too."""
    with triton.InferenceServerClient(server.grpc_url.removeprefix("grpc://")) as client:
        for call in (
            client.get_model_repository_index,
            lambda: client.load_model("florence2_vision"),
            lambda: client.unload_model("florence2_vision"),
            client.get_system_shared_memory_status,
            lambda: client.register_system_shared_memory("x", "/x", 4),
            client.unregister_system_shared_memory,
            client.get_cuda_shared_memory_status,
            client.get_log_settings,
            lambda: client.update_log_settings({"log_verbose_level": 1}),
            client.get_trace_settings,
            lambda: client.update_trace_settings(settings={"trace_level": ["TENSORS"]}),
        ):
            with pytest.raises(InferenceServerException, match="This protocol is restricted"):
                call()


@pytest.mark.parametrize("value", [b"\n", b"\r\n \n", b"\r\n\t", b"", b"%0a", b"\\n"])
def test_no_client_can_send_the_key(server, value):
    """The key is a line break, which ends a header however it is written."""
    host, port = server.http_url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=10) as connection:
        connection.sendall(b"GET /v2/logging HTTP/1.1\r\nHost: x\r\ndisabled: " + value + b"\r\n\r\n")
        connection.shutdown(socket.SHUT_WR)
        reply = connection.recv(1000)
    assert not reply.startswith(b"HTTP/1.1 2")


def test_information_about_the_models_is_open(server):
    """`florence2 info`, `florence2 health` and load generators need it."""
    assert ask(server, "GET", f"{ENSEMBLE}/config")[0] == 200
    assert ask(server, "GET", f"{ENSEMBLE}/stats")[0] == 200
    assert ask(server, "GET", "/v2/health/ready")[0] == 200


def test_other_users_of_the_machine_see_neither_images_nor_files(server):
    """Only the server's user can read its shared memory and folder, and it listens only on this machine."""
    regions = [path for path in Path("/dev/shm").iterdir() if path.name.startswith(server._shm_prefix)]
    assert len(regions) >= 5
    assert {path.stat().st_mode & 0o777 for path in regions} == {0o600}
    assert server._folder.stat().st_mode & 0o777 == 0o700
    assert server.http_url.startswith("http://127.0.0.1:") and server.grpc_url.startswith("grpc://127.0.0.1:")


@pytest.mark.parametrize(
    "key,hint",
    [
        ("num_beams", "NUM_BEAMS"),
        ("max-new-tokens", "MAX_NEW_TOKENS"),
        ("Text", "TEXT"),
        ("x" * 9999, "the inputs are"),
    ],
)
def test_unknown_keys_of_generate_are_refused(server, key, hint):
    """Triton makes parameters of them, which would be ignored, and passes them on with the request."""
    image = base64.b64encode(png()).decode()
    status, reply = generate(server, image, **{key: 1})
    assert status == 400 and "there is no input" in reply["error"] and hint in reply["error"]
    assert len(reply["error"]) < 500
    assert generate(server, image, id="7", stream=False, TEXT="")[0] == 200


@pytest.mark.parametrize("headers", [JSON, FORM], ids=["json", "form"])
@pytest.mark.parametrize("name", ["TEXT", "TASK"])
@pytest.mark.parametrize("text", ["1" * 99_990 + "x,1,1,1", "1" * 19_990 + "x,1,1,1", "1" * 10_000_000])
def test_long_texts_are_refused_at_once(server, headers, name, text):
    """A region of many digits once took minutes, in which the server answered no one."""
    image = base64.b64encode(png()).decode()
    start = time.monotonic()
    status, reply = generate(server, image, headers, **({"TASK": "<REGION_TO_CATEGORY>"} | {name: text}))
    assert status == 400 and "INVALID_PROMPT" in reply["error"]
    assert time.monotonic() - start < 20


@pytest.mark.parametrize("headers", [JSON, FORM], ids=["json", "form"])
def test_a_body_of_24_mb_is_answered(server, headers):
    """Also as a form, as `curl -d` sends it: with Triton's default stack, 5 MB of it ended the server."""
    status, reply = generate(server, "A" * 24_000_000, headers)
    assert status == 400 and "INVALID_IMAGE: the image cannot be read" in reply["error"]


def test_a_large_message_over_grpc_is_answered(server):
    """Only memory limits its size."""
    with pytest.raises(InferenceServerException, match="the image is damaged"):
        infer(server, b"\xff\xd8" + bytes(64_000_000))


ADDRESSES = ["http://169.254.169.254/latest", "https://example.com/a.jpg", "file:///etc/passwd", "ftp://host/a"]


@pytest.mark.parametrize("address", [*ADDRESSES, "/etc/passwd", "../../etc/passwd"])
def test_nothing_is_fetched(server, address):
    """URLs are refused with a message of their own; a path is read as base64 text or as a damaged image."""
    status, reply = generate(server, address)
    assert status == 400
    said = "the server fetches nothing" if address in ADDRESSES else "the image"
    assert said in reply["error"] and "root:" not in reply["error"]


BOMB = zlib.compress(bytes(64_000_000))
HOSTILE = {
    "40,000 x 40,000 pixels": png(side=1).replace(struct.pack(">II", 1, 1), struct.pack(">II", 40_000, 40_000)),
    "a text of 64 MB": png((b"zTXt", b"note\0\0" + BOMB)),
    "a color profile of 64 MB": png((b"iCCP", b"icc\0\0" + BOMB)),
    "PostScript": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n(/etc/passwd) (r) file showpage",
    "PDF": b"%PDF-1.7\n1 0 obj\n<< /Type /Catalog >>\nendobj\n",
    "SVG": b'<svg xmlns="http://www.w3.org/2000/svg"><image href="file:///etc/passwd"/></svg>',
}


@pytest.mark.parametrize("what", HOSTILE)
def test_hostile_images_are_refused_or_harmless(server, what):
    """Quickly, whatever they would unpack to."""
    start = time.monotonic()
    with contextlib.suppress(InferenceServerException):
        infer(server, HOSTILE[what])
        assert what == "a color profile of 64 MB", "only this image has pixels that can be read"
    assert time.monotonic() - start < 20


def test_one_frame_of_an_animation_is_decoded(server):
    """Three thousand frames cost as much as one."""
    frames = [Image.new("L", (64, 64), n % 256) for n in range(3000)]
    buffer = io.BytesIO()
    frames[0].save(buffer, "GIF", save_all=True, append_images=frames[1:])
    start = time.monotonic()
    infer(server, buffer.getvalue())
    assert time.monotonic() - start < 20


def test_the_log_contains_no_images_prompts_or_answers(server, log):
    """Neither those of good requests nor those of refused ones."""
    buffer = io.BytesIO()
    Image.new("RGB", (32, 32), "red").save(buffer, "PNG")
    generate(server, "c2VjcmV0LXBpY3R1cmU=")
    generate(server, buffer.getvalue().hex(), TASK="secret-prompt")
    for task in "secret-prompt", "<OCR> secret-text", "secret-prompt" * 10_000:
        with contextlib.suppress(InferenceServerException):
            generate(server, "secret-image", TASK=task)
    assert "secret" not in "\n".join(log)


def test_the_document_names_the_version_that_runs(server):
    """What it says about Triton holds for that version."""
    version = ask(server, "GET", "/v2")[1]["version"]
    assert f"Triton {version.rsplit('.', 1)[0]}" in PAGE


def test_the_key_is_no_secret(server):
    """Every user can read the command line."""
    restricted = [word for word in server._process.args if "restricted" in word]
    assert len(restricted) == 2 and all(word.endswith(":disabled=\n") for word in restricted)
