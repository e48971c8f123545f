"""The URL of a server, and the headers and TLS files that go with it."""

from __future__ import annotations

import pytest

from florence2.errors import InvalidRequest
from florence2_client import Client, Tls
from florence2_client.transports import Address, parse_url


@pytest.mark.parametrize(
    ("url", "address"),
    [
        ("grpc://127.0.0.1:9001", Address("grpc", "127.0.0.1", 9001, "")),
        ("gpu-box:9001", Address("grpc", "gpu-box", 9001, "")),
        ("gpu-box", Address("grpc", "gpu-box", 8001, "")),
        (" grpc://gpu-box:9001\n", Address("grpc", "gpu-box", 9001, "")),
        ("http://gpu-box", Address("http", "gpu-box", 8000, "")),
        ("https://vision.example/triton/", Address("https", "vision.example", 443, "/triton")),
        ("GRPCS://Box:1", Address("grpcs", "box", 1, "")),
        ("grpc://[::1]:8001", Address("grpc", "[::1]", 8001, "")),
        ("grpc://10.0.0.1,10.0.0.2:81", Address("grpc", "10.0.0.1", 8001, "", others=("10.0.0.2:81",))),
    ],
)
def test_url_says_protocol_host_and_port(url, address):
    """The scheme chooses the transport; without one it is gRPC; ports have Triton's defaults."""
    assert parse_url(url) == address


@pytest.mark.parametrize(
    "url",
    [
        "",
        " ",
        "ftp://x",
        "grpc://",
        "http://",
        "http://:8000",
        "grpc://x:99999",
        "grpc://x:0",
        "http://x:port",
        "grpc://x/path",
        "http://x?y=1",
        "http://x#y",
        "http://[::1",
        "http://me:secret@x",
        "http://:secret@x",
        "grpc://a b",
        "grpc://a..b",
        "http://" + "a" * 64,
    ],
)
def test_bad_url_is_an_invalid_request(url):
    """The message has an example of a good one."""
    with pytest.raises(InvalidRequest, match=r"grpc://127\.0\.0\.1:8001"):
        Client(url)


@pytest.mark.parametrize(
    "url", ["http://10.0.0.1,10.0.0.2:80", "grpc://a,b:1", "grpc://10.0.0.1,", "10.0.0.1,10.0.0.2:x"]
)
def test_a_bad_list_of_servers_is_an_invalid_request(url):
    """Only gRPC takes a list, and only of addresses, not of host names."""
    with pytest.raises(InvalidRequest, match="several servers"):
        Client(url)


@pytest.mark.parametrize("headers", [{"a b": "c"}, {"": "c"}, {"a": "b\r\nc: d"}, {"a": "ü"}])
def test_bad_header_is_an_invalid_request(headers):
    """What no header can hold, such as a line break, is refused before anything is sent."""
    with pytest.raises(InvalidRequest, match="is not a header"):
        Client(headers=headers)


def test_tls_files_are_checked_at_once(tmp_path):
    """A missing file is named when the client is created. TLS files for a URL without TLS are a mistake too."""
    with pytest.raises(InvalidRequest, match=r"there is no file .*missing.pem"):
        Client("https://box", tls=Tls(ca=tmp_path / "missing.pem"))
    with pytest.raises(InvalidRequest, match="use grpcs://"):
        Client("grpc://box", tls=Tls(ca=tmp_path / "missing.pem"))


@pytest.mark.parametrize("name", ["Content-Length", "transfer-encoding"])
def test_a_header_that_would_cut_requests_is_refused(name):
    with pytest.raises(InvalidRequest, match="is set for each request"):
        Client(headers={name: "5"})
