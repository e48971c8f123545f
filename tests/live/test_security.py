"""docs/security.md stays true: what the embedded server refuses, survives, shows to others and writes down."""

from __future__ import annotations

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
    """One of its own: its log is read, and a hostile request would end it for the others."""
    with EmbeddedServer(ServingOptions.on_free_ports(repository), report=log.append) as running:
        yield running
        assert running._process.poll() is None, "something that was sent ended the server"


def ask(server, method: str, path: str, body: bytes | None = None, headers: dict[str, str] = JSON):
    """Status and JSON of a reply by HTTP."""
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
    """A grey PNG with chunks of one's own behind its header."""
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
def test_what_changes_the_server_is_closed_by_http(server, method, path):
    """To everybody, and no odd spelling of the path gets around it."""
    assert ask(server, method, path, b"{}")[0] == 403
    for odd in f"/{path}", f"{path}/", path.replace("/v2", "/v2/."), path.replace("o", "%6f"), path.upper():
        assert ask(server, method, odd, b"{}")[0] in (400, 403, 404)


def test_what_changes_the_server_is_closed_by_grpc(server):
    """All that the HTTP side closes."""
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
def test_nobody_can_send_the_key(server, value):
    """It is a line break, which ends a header in whatever way it is written."""
    host, port = server.http_url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=10) as connection:
        connection.sendall(b"GET /v2/logging HTTP/1.1\r\nHost: x\r\nnobody: " + value + b"\r\n\r\n")
        connection.shutdown(socket.SHUT_WR)
        reply = connection.recv(1000)
    assert not reply.startswith(b"HTTP/1.1 2")


def test_what_tells_of_the_models_is_open(server):
    """`florence2 info`, `health` and load generators ask for it."""
    assert ask(server, "GET", f"{ENSEMBLE}/config")[0] == 200
    assert ask(server, "GET", f"{ENSEMBLE}/stats")[0] == 200
    assert ask(server, "GET", "/v2/health/ready")[0] == 200


def test_other_users_of_the_machine_see_neither_pictures_nor_files(server):
    """Shared memory and the server's folder are for its user alone; it listens on this machine alone."""
    regions = [path for path in Path("/dev/shm").iterdir() if path.name.startswith(server._shm_prefix)]
    assert len(regions) >= 5
    assert {path.stat().st_mode & 0o777 for path in regions} == {0o600}
    assert server._folder.stat().st_mode & 0o777 == 0o700
    assert server.http_url.startswith("http://127.0.0.1:") and server.grpc_url.startswith("grpc://127.0.0.1:")


@pytest.mark.parametrize("headers", [JSON, FORM], ids=["json", "form"])
def test_a_body_of_24_mb_is_answered(server, headers):
    """Also as a form, which `curl -d` sends: with Triton's usual stack, 5 MB of it ended the server."""
    status, reply = generate(server, "A" * 24_000_000, headers)
    assert status == 400 and "the image is damaged" in reply["error"]


def test_a_large_message_by_grpc_is_answered(server):
    """Nothing limits its size but memory."""
    with pytest.raises(InferenceServerException, match="the image is damaged"):
        infer(server, b"\xff\xd8" + bytes(64_000_000))


ADDRESSES = ["http://169.254.169.254/latest", "https://example.com/a.jpg", "file:///etc/passwd", "ftp://host/a"]


@pytest.mark.parametrize("address", [*ADDRESSES, "/etc/passwd", "../../etc/passwd"])
def test_nothing_is_fetched(server, address):
    """Addresses are refused by name; a path is base64 text or no picture."""
    status, reply = generate(server, address)
    assert status == 400
    said = "the server fetches nothing" if address in ADDRESSES else "the image"
    assert said in reply["error"] and "root:" not in reply["error"]


BOMB = zlib.compress(bytes(64_000_000))
HOSTILE = {
    "40,000 x 40,000 pixels": png(side=1).replace(struct.pack(">II", 1, 1), struct.pack(">II", 40_000, 40_000)),
    "a text of 64 MB": png((b"zTXt", b"note\0\0" + BOMB)),
    "a colour profile of 64 MB": png((b"iCCP", b"icc\0\0" + BOMB)),
    "PostScript": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n(/etc/passwd) (r) file showpage",
    "PDF": b"%PDF-1.7\n1 0 obj\n<< /Type /Catalog >>\nendobj\n",
    "SVG": b'<svg xmlns="http://www.w3.org/2000/svg"><image href="file:///etc/passwd"/></svg>',
}


@pytest.mark.parametrize("what", HOSTILE)
def test_hostile_pictures_are_refused_or_harmless(server, what):
    """Quickly, whatever they unpack to."""
    start = time.monotonic()
    with contextlib.suppress(InferenceServerException):
        infer(server, HOSTILE[what])
        assert what == "a colour profile of 64 MB", "only this one's pixels are worth reading"
    assert time.monotonic() - start < 5


def test_of_an_animation_one_frame_is_decoded(server):
    """Three thousand frames cost what one does."""
    frames = [Image.new("L", (64, 64), n % 256) for n in range(3000)]
    buffer = io.BytesIO()
    frames[0].save(buffer, "GIF", save_all=True, append_images=frames[1:])
    start = time.monotonic()
    infer(server, buffer.getvalue())
    assert time.monotonic() - start < 5


def test_the_log_holds_no_pictures_prompts_or_answers(server, log):
    """Neither of good requests nor of refused ones."""
    buffer = io.BytesIO()
    Image.new("RGB", (32, 32), "red").save(buffer, "PNG")
    generate(server, "c2VjcmV0LXBpY3R1cmU=")
    generate(server, buffer.getvalue().hex(), TASK="secret-prompt")
    for task in "secret-prompt", "<OCR> secret-text", "secret-prompt" * 10_000:
        with contextlib.suppress(InferenceServerException):
            generate(server, "secret-picture", TASK=task)
    assert "secret" not in "\n".join(log)


def test_the_page_names_the_version_that_runs(server):
    """And what it says of it is about that version."""
    version = ask(server, "GET", "/v2")[1]["version"]
    assert f"Triton {version.rsplit('.', 1)[0]}" in PAGE


def test_the_key_is_nothing_to_hide(server):
    """The command line, which every user can read, holds no secret."""
    restricted = [word for word in server._process.args if "restricted" in word]
    assert len(restricted) == 2 and all(word.endswith(":nobody=\n") for word in restricted)
